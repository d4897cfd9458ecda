"""Folders of images, recipes and processes for the tests of the jobs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fetal_core.config import merge, parse
from fetal_core.recipe import Recipe

HEADER = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "
PLANES = ("Fetal brain", "Fetal femur")

_BASE: dict[str, Any] = {
    "preprocess": {"size_px": 32},
    "model": {"architecture": "resnet18", "weights": "none"},
    "optim": {"name": "sgd", "lr": 0.02},
    "train": {"precision": "fp32"},
    "evaluate": {"resamples": 200},
}


def recipe(**groups: Mapping[str, Any]) -> Recipe:
    """A recipe for small images and no downloads, with some settings changed."""
    return parse(Recipe, merge(_BASE, groups), "test")


def png(seed: int, height: int = 40, width: int = 56) -> bytes:
    """A smooth random grey image, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_textures(
    folder: Path, patients: int = 10, views: int = 1, height: int = 40, width: int = 56
) -> Path:
    """Images of patients whose plane alternates, with a table in FETAL_PLANES_DB's format."""
    (folder / "images").mkdir(parents=True)
    lines = [HEADER]
    for patient in range(patients):
        for view in range(views):
            name = f"P{patient:02d}_{view}"
            data = png(patient * views + view, height, width)
            (folder / "images" / f"{name}.png").write_bytes(data)
            plane, test = PLANES[patient % 2], patient % 5 == 0
            lines.append(f"{name};{patient};{plane};Not A Brain;Op. 1;Aloka;{int(not test)} ")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def flags(settings: Recipe) -> list[str]:
    """The command-line flags that turn the default recipe into this one."""
    changed = _leaves(settings.model_dump(mode="json", exclude_defaults=True))
    return [word for key, value in changed for word in (f"--{key.replace('_', '-')}", str(value))]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found += _leaves(value, f"{prefix}{key}.") if nested else [(prefix + key, value)]
    return found


def start(command: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """A ``fetal`` command in a session of its own, so that all its processes can be ended."""
    return spawn("-m", f"ray_jobs.{command}", *arguments, cwd=cwd)


def spawn(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Python in a session of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(command: str, *arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit code and output of a command that runs to its end."""
    process = start(command, *arguments, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        kill(process)
    return process.returncode, output


def interrupt_when(
    ready: Callable[[], bool], *command: str, cwd: Path, number: int = signal.SIGINT
) -> tuple[int, str]:
    """Exit code and output of a command that gets a signal as soon as ``ready`` holds.

    All of its process group get it, as from a terminal or `timeout`; none of them may stay.
    """
    with _running_until(ready, *command, cwd=cwd) as process:
        output = end_group(process, number)
    return process.returncode, output


def end_group(process: subprocess.Popen[str], number: int) -> str:
    """Signal a command's process group; what it has said when all its processes are gone."""
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while _session(process.pid):
        assert time.monotonic() < deadline, "processes are left behind"
        time.sleep(0.1)
    return output


def kill_when(ready: Callable[[], bool], *command: str, cwd: Path) -> None:
    """Start a command and ``kill`` it as soon as ``ready`` holds."""
    with _running_until(ready, *command, cwd=cwd):
        pass


@contextmanager
def _running_until(
    ready: Callable[[], bool], *command: str, cwd: Path
) -> Iterator[subprocess.Popen[str]]:
    process = start(*command, cwd=cwd)
    try:
        while not ready():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """End a command and every process that it started, at once, as a power cut would."""
    for pid in _session(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def processes(process: subprocess.Popen[str], title: str) -> list[int]:
    """Ids of a command's processes whose titles hold a word."""
    found = []
    for pid in _session(process.pid):
        with suppress(OSError):
            if title in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def _session(leader: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == leader:
                found.append(int(folder.name))
    return found
