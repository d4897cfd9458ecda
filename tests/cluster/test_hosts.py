"""The hosts themselves: what is left of them when the tests are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import wait_until
from hosts import missing

LACKING = missing()
pytestmark = [pytest.mark.cluster, pytest.mark.needs(LACKING is None, LACKING)]

_SCRIPT = """
import sys
from clusters import s3_store
from hosts import network
with network() as net, s3_store(net):
    net.add({}).daemon("work", "sleep", "600")
    while not any("sleep" in line for line in net.hosts[0].processes()):
        pass
    print(net.switch.pid, net.hosts[0].pid, flush=True)
    sys.stdin.read()
"""


def namespaces_of(pid: str) -> set[str]:
    """Those of a process that this test is not in itself."""
    kinds = ("net", "pid")
    both = [
        {str(Path(f"/proc/{one}/ns/{kind}").readlink()) for kind in kinds} for one in (pid, "self")
    ]
    return both[0] - both[1]


def inside(namespaces: set[str]) -> list[str]:
    """The command lines of all processes in any of some namespaces."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            own = {str((folder / "ns" / kind).readlink()) for kind in ("net", "pid")}
            if own & namespaces:
                found.append((folder / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


def test_no_process_outlives_tests_that_are_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SCRIPT],
        cwd=Path(__file__).parent,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            pids = process.stdout.readline().split()
            assert len(pids) == 2
            namespaces = set().union(*map(namespaces_of, pids))
            running = "\n".join(inside(namespaces))
            assert "gateway" in running
            assert "sleep" in running
        finally:
            process.kill()
    wait_until(lambda: not inside(namespaces), limit_s=60)
