"""What is read from the system, against what the test itself has set up there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from ray_jobs.machine_checks import check_disks, check_gpus
from ray_jobs.machine_facts import Space, own_ports, read_facts
from required import lack

MIB = 2**20
MEMINFO = "MemTotal:  8388608 kB\nMemFree: 1048576 kB\nMemAvailable: 4194304 kB\nHugePages: 0\n"


def write(root: Path, **files: str) -> Path:
    """Files below ``root``; ``__`` in a name stands for ``/``."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine() -> None:
    facts = read_facts(["/"])
    assert facts.versions["python"] == platform.python_version()
    assert facts.versions["torch"] == version("torch")
    assert facts.disks["/"].total_bytes == shutil.disk_usage("/").total
    assert facts.memory is not None
    assert 0 < facts.memory.free_bytes <= facts.memory.total_bytes
    assert facts.cores == len(os.sched_getaffinity(0))


def test_memory_is_that_of_the_machine_without_a_control_group(tmp_path: Path) -> None:
    facts = read_facts([], write(tmp_path, proc__meminfo=MEMINFO))
    assert facts.memory == Space(4096 * MIB, 8192 * MIB)
    assert (facts.shm, facts.quota_cores) == (None, None)


def test_limits_of_a_control_group_count(tmp_path: Path) -> None:
    root = write(tmp_path, proc__meminfo=MEMINFO)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{2048 * MIB}\n")
    (group / "memory.current").write_text(f"{1500 * MIB}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {500 * MIB}\nslab 3\n")
    (group / "cpu.max").write_text("150000 100000\n")
    (group / "pids.max").write_text("512\n")
    facts = read_facts([], root)
    assert facts.memory == Space(1048 * MIB, 2048 * MIB)
    assert facts.quota_cores == 1.5
    assert facts.limits["processes of the control group"] == 512
    for file in ("memory.max", "cpu.max", "pids.max"):
        (group / file).write_text("max\n" if file != "cpu.max" else "max 100000\n")
    facts = read_facts([], root)
    assert facts.memory == Space(4096 * MIB, 8192 * MIB)
    assert facts.quota_cores is None
    assert "processes of the control group" not in facts.limits


def test_control_groups_of_the_first_version_count_too(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__meminfo=MEMINFO,
        sys__fs__cgroup__cpu__cpu="",
    )
    group = tmp_path / "sys/fs/cgroup"
    (group / "memory").mkdir()
    (group / "memory/memory.limit_in_bytes").write_text(f"{1024 * MIB}")
    (group / "memory/memory.usage_in_bytes").write_text(f"{256 * MIB}")
    (group / "cpu/cpu.cfs_quota_us").write_text("50000")
    (group / "cpu/cpu.cfs_period_us").write_text("100000")
    facts = read_facts([], root)
    assert facts.memory == Space(768 * MIB, 1024 * MIB)
    assert facts.quota_cores == 0.5


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_open_ports_are_found_with_their_addresses(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with closing(listener):
        port = listener.getsockname()[1]
        assert (address, port) in read_facts([]).listening
        assert (port in own_ports()) == (address in ("0.0.0.0", "::"))
    assert (address, port) not in read_facts([]).listening


def test_limits_of_this_process() -> None:
    code = (
        "import resource, json, dataclasses\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (500, 1000))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))\n"
        "from ray_jobs.machine_facts import read_facts\n"
        "print(json.dumps(read_facts([]).limits))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    limits = json.loads(output)
    # Ray raises the soft limit by itself.
    assert limits["open files"] == 1000
    assert limits["file size"] == 10**9
    assert limits["address space"] == -1


def test_a_driver_without_cards_that_torch_can_use(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__driver__nvidia__version=(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024\nGCC: 12\n"
        ),
    )
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    facts = read_facts([], root)
    assert (facts.gpus.driver, facts.gpus.visible) == ("550.54.15", 1)
    if not facts.gpus.working:  # which is so where there is no card
        assert [finding.severity for finding in check_gpus("here", facts, None)] == ["fail"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    if os.geteuid() != 0:
        lack("only root can mount a file system")
    options = ["-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        lack("mounting is not allowed here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_fails_also_for_a_folder_that_is_not_there_yet(small_disk: Path) -> None:
    runs = str(small_disk / "new" / "runs")
    assert read_facts([runs]).disks[runs].total_bytes == 64 * MIB
    (small_disk / "filler").write_bytes(bytes(62 * MIB))
    (finding,) = check_disks("here", read_facts([runs]))
    assert finding.severity == "fail"
    assert finding.seen.startswith(f"{runs}: 2 MiB free of 64 MiB")
    assert "Free space" in finding.remedy
