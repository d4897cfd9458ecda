"""Cores that a process may use, by control groups' files as kernels and containers show them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fetal_core.machine import cores, cpu_quota

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"
POD = "/kubepods.slice/pod1.slice/container.scope"


def machine(root: Path, **files: str) -> Path:
    """The files of a machine: `proc/self/cgroup`, and limits by their group's folder.

    Args:
        root: where they are written.
        files: a folder and its ``quota period``, with ``cpu.max`` unless it is of version 1.
    """
    for folder, text in files.items():
        path = root / folder
        path.mkdir(parents=True, exist_ok=True)
        if f"{folder}/".startswith(f"{V1}/"):
            quota, period = text.split()
            (path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (path / "cpu.cfs_period_us").write_text(f"{period}\n")
        else:
            (path / "cpu.max").write_text(f"{text}\n")
    return root


def is_in(root: Path, *lines: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may run on eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_a_pod_that_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    root = machine(is_in(tmp_path, "0::/"), **{V2: "250000 100000"})
    assert cpu_quota(root) == 2.5
    assert cores(root) == 2


def test_groups_above_count_too(tmp_path: Path) -> None:
    limits = {
        f"{V2}{POD}": "max 100000",
        f"{V2}/kubepods.slice/pod1.slice": "300000 100000",
        f"{V2}/kubepods.slice": "600000 100000",
        f"{V2}/another.slice": "100000 100000",
    }
    root = machine(is_in(tmp_path, f"0::{POD}"), **limits)
    assert (cpu_quota(root), cores(root)) == (3, 3)


def test_the_own_group_may_be_the_narrowest(tmp_path: Path) -> None:
    limits = {f"{V2}{POD}": "20000 10000", f"{V2}/kubepods.slice": "600000 100000"}
    assert cores(machine(is_in(tmp_path, f"0::{POD}"), **limits)) == 2


def test_a_container_that_is_told_the_hosts_path_has_its_limit_at_the_top(tmp_path: Path) -> None:
    lines = ("5:memory:/docker/1", f"4:cpu,cpuacct:{POD}", "0::/docker/1")
    assert cores(machine(is_in(tmp_path, *lines), **{V1: "400000 100000"})) == 4


def test_a_path_out_of_what_can_be_seen_is_not_followed(tmp_path: Path) -> None:
    limits = {V2: "300000 100000", "sys/fs/beside": "100000 100000"}
    assert cores(machine(is_in(tmp_path, "0::/../beside"), **limits)) == 3


def test_both_versions_at_once(tmp_path: Path) -> None:
    limits = {f"{V1}/batch": "500000 100000", V1: "-1 100000", f"{V2}/unified/job": "max 100000"}
    root = machine(is_in(tmp_path, "2:cpuacct:/", "1:cpu:/batch", "0::/job"), **limits)
    assert cores(root) == 5


def test_less_than_a_core_is_one(tmp_path: Path) -> None:
    root = machine(is_in(tmp_path, "0::/"), **{V2: "50000 100000"})
    assert (cpu_quota(root), cores(root)) == (0.5, 1)


def test_a_generous_quota_gives_no_core_beyond_those_it_may_run_on(tmp_path: Path) -> None:
    assert cores(machine(is_in(tmp_path, "0::/"), **{V2: "6400000 100000"})) == 8


@pytest.mark.parametrize("limits", [{V2: "max 100000"}, {V1: "-1 100000"}, {}])
def test_without_a_quota_all_cores_count(tmp_path: Path, limits: dict[str, str]) -> None:
    root = machine(is_in(tmp_path, "1:cpu:/", "0::/"), **limits)
    assert (cpu_quota(root), cores(root)) == (None, 8)


@contextmanager
def real_group(quota_us: int) -> Iterator[Path]:
    """A control group of this machine with a limit for each 100 ms, below that of this process."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    paths = {name: path for _, names, path in own for name in names.split(",")}
    for mount, name, file in ((V2, "", "cpu.max"), (V1, "cpu", "cpu.cfs_quota_us")):
        group = Path(f"/{mount}{paths.get(name, '/')}") / f"fetal-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / "cgroup.procs").exists() and (group / file).exists():
                (group / file).write_text(str(quota_us))
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("no control group with a CPU limit can be made here")


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="no control groups here")
def test_a_process_in_a_real_group() -> None:
    join = "import sys; open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\n"
    ask = "from fetal_core.machine import cores, cpu_quota; print(cpu_quota(), cores())"
    with real_group(150_000) as group:
        words = [sys.executable, "-c", join + ask, str(group)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.split() == ["1.5", "1"]
