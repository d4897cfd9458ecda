"""Cohorts: shards for ours, and for the peers a folder for each class with the same images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fetal_core.manifest import Manifest
from ray_jobs.workspace import Prepared

ROOT = Path(__file__).resolve().parents[2]

# Few images: nearly all of them are for training.
_SPLIT = (
    "--split.no-use-official-test",
    *("--split.test", "0.05", "--split.val", "0.1", "--split.calib", "0.05"),
)


@dataclass(frozen=True)
class Cohort:
    """Images as each contender wants them.

    Attributes:
        name: for the reader.
        prepared: folder of `fetal prepare`.
        classes: folder with a folder of links for each class.
        images: of the training part.
    """

    name: str
    prepared: Path
    classes: Path
    images: int


def fetal(words: Sequence[str], prefix: Sequence[str] = ()) -> None:
    """Run a stage as a user does.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [*prefix, sys.executable, "-m", f"ray_jobs.{words[0]}", *words[1:]]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"fetal {words[0]}: {(run.stdout + run.stderr)[-1500:]}")


def phantom_twin(data: Path, folder: Path, prefix: Sequence[str]) -> Path:
    """A synthetic image for each row of the label table."""
    out = folder / "twin-images"
    fetal(("phantom", str(out), "--like", str(data / "labels.csv")), prefix)
    return out


def make_cohort(
    name: str, data: Path, folder: Path, size_px: int, linked: int, prefix: Sequence[str]
) -> Cohort:
    """Prepare a cohort, unless an earlier run has done so in ``folder``.

    Args:
        name: of the cohort.
        data: images and label table.
        folder: to write to.
        size_px: side of the images in the shards.
        linked: images that the peers need for one pass; an image gets several links if need be.
        prefix: words before the command.
    """
    out = folder / f"{name}-{size_px}px"
    prepared = out / "prepared"
    if not (prepared / "shards" / "index.json").is_file():
        words = ("prepare", str(data), "--out", str(prepared), *_SPLIT)
        fetal((*words, "--preprocess.size-px", str(size_px)), prefix)
    manifest, split, _ = Prepared(str(prepared)).load()
    chosen = set(split.parts["train"])
    classes = out / f"classes-{linked}"
    if not classes.is_dir():
        _link(manifest, chosen, classes, linked)
    return Cohort(name, prepared, classes, len(chosen))


def _link(manifest: Manifest, chosen: set[str], folder: Path, wanted: int) -> None:
    rows = [row for row, image in enumerate(manifest.ids) if image in chosen]
    order = np.random.default_rng(0).permutation(rows)
    labels = manifest.table["label"].to_pylist()
    for number in range(max(wanted, len(rows))):
        row = int(order[number % len(rows)])
        path = Path(manifest.uri(row))
        place = folder / manifest.classes[labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05d}{path.suffix}").symlink_to(path)
