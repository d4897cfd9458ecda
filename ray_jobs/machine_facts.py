"""What this machine is and has, read from the system; nothing here judges it."""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fetal_core.machine import cpu_quota, visible_cores

PACKAGES = ("fetal-planes", "ray", "torch", "torchvision", "pyarrow")
_LIMITS = {"open files": "RLIMIT_NOFILE", "processes": "RLIMIT_NPROC"}
_LIMITS |= {"file size": "RLIMIT_FSIZE", "address space": "RLIMIT_AS"}
_LISTENS = "0A"
_CUDA_S = 60
_CUDA = """
import json, torch
found = {"built": torch.version.cuda, "devices": []}
for index in range(torch.cuda.device_count()):
    ones = torch.ones(8, 8, device=f"cuda:{index}")
    assert float((ones @ ones).sum()) == 512
    found["devices"].append(torch.cuda.get_device_name(index))
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Space:
    """Bytes of a disk, a file system or memory that are free, and all of them."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Gpus:
    """What the driver shows, and what torch can compute with.

    Attributes:
        driver: its version; empty where there is none.
        visible: devices that the driver shows.
        built: version of CUDA that torch was built for; empty for none.
        working: names of the devices on which torch has multiplied matrices.
        error: last line of what torch said where it failed.
    """

    driver: str = ""
    visible: int = 0
    built: str = ""
    working: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """A machine at a moment.

    Attributes:
        versions: of Python and of packages; empty where one is not installed.
        disks: for each folder asked for, the file system that it is or will be on.
        memory: of the machine or of its control group, whichever is smaller; None if unknown.
        shm: ``/dev/shm``; None where there is none.
        limits: of this process, by name; -1 for none.
        cores: that this process may run on.
        quota_cores: that its control groups grant; None for no quota.
        listening: addresses and ports of TCP on which any process of the machine listens.
        gpus: see there.
    """

    versions: dict[str, str]
    disks: dict[str, Space]
    memory: Space | None
    shm: Space | None
    limits: dict[str, int]
    cores: int
    quota_cores: float | None
    listening: tuple[tuple[str, int], ...]
    gpus: Gpus


def read_facts(folders: Sequence[str], root: Path = Path("/")) -> Facts:
    """All of it.

    Args:
        folders: whose disks count.
        root: of the file system, with ``proc``, ``sys`` and ``dev`` in it.
    """
    shm = root / "dev/shm"
    return Facts(
        versions=_versions(),
        disks={folder: _space(folder) for folder in folders},
        memory=_memory(root),
        shm=_space(str(shm)) if shm.is_dir() else None,
        limits=dict(_limits(root)),
        cores=visible_cores(),
        quota_cores=cpu_quota(root),
        listening=tuple(sorted(set(_listening(root)))),
        gpus=_gpus(root),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def _space(folder: str) -> Space:
    """Of the nearest folder above that is there."""
    path = Path(folder).absolute()
    # Not `Path.exists`, which raises where a folder may not be looked into.
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110
        path = path.parent
    usage = shutil.disk_usage(path)
    return Space(usage.free, usage.total)


def _memory(root: Path) -> Space | None:
    lines = (line.split() for line in _text(root / "proc/meminfo").splitlines())
    kib = {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) > 1}
    if not {"MemTotal", "MemAvailable"} <= kib.keys():
        return None
    free, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    group = root / "sys/fs/cgroup"
    limit = _number(group / "memory.max") or _number(group / "memory/memory.limit_in_bytes")
    used = _number(group / "memory.current") or _number(group / "memory/memory.usage_in_bytes")
    if limit is None or used is None or limit >= total:
        return Space(free, total)
    # The kernel gives up cached files before it ends a process.
    statistics = (line.split() for line in _text(group / "memory.stat").splitlines())
    cached = sum(int(value) for key, value in statistics if key == "inactive_file")
    return Space(min(free, limit - used + cached), limit)


def _limits(root: Path) -> Iterator[tuple[str, int]]:
    with suppress(ImportError):
        import resource

        for name, key in _LIMITS.items():
            # Ray raises the number of open files as far as it may.
            soft, hard = resource.getrlimit(getattr(resource, key))
            found = hard if key == "RLIMIT_NOFILE" else soft
            yield name, -1 if found == resource.RLIM_INFINITY else found
    pids = _number(root / "sys/fs/cgroup/pids.max")
    if pids is not None:
        yield "processes of the control group", pids


def _listening(root: Path) -> Iterator[tuple[str, int]]:
    for name in ("tcp", "tcp6"):
        for line in _text(root / "proc/net" / name).splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _LISTENS:
                address, _, port = local.partition(":")
                yield _address(address), int(port, 16)


def _address(hexadecimal: str) -> str:
    """The kernel writes 32-bit words in the machine's byte order."""
    words = [hexadecimal[start : start + 8] for start in range(0, len(hexadecimal), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    found = ipaddress.ip_address(packed)
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def _gpus(root: Path) -> Gpus:
    driver = root / "proc/driver/nvidia"
    visible = len(list((driver / "gpus").glob("*")))
    if not visible:
        return Gpus()
    first = _text(driver / "version").partition("\n")[0]
    number = next((word for word in first.split() if word[0].isdigit() and "." in word), "")
    # In a process of its own: Ray hides GPUs from one that asked for none, and CUDA may end it.
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _CUDA]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_CUDA_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Gpus(number, visible, error=f"no answer within {_CUDA_S} s")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"ended by {done.returncode}"]
        return Gpus(number, visible, error=lines[-1])
    found = json.loads(done.stdout)
    return Gpus(number, visible, found["built"] or "", tuple(found["devices"]))


def own_ports() -> list[int]:
    """Ports of TCP on which this very process listens beyond the loopback interface."""
    inodes = set()
    for handle in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            inodes.add(str(handle.readlink()).removeprefix("socket:[").rstrip("]"))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in _text(Path("/proc/net") / name).splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == _LISTENS and fields[9] in inodes and not is_loopback(_address(address)):
                found.add(int(port, 16))
    return sorted(found)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address).is_loopback


def hostname() -> str:
    """Name of this machine."""
    return socket.gethostname()


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
