"""EC2 takes a spot instance, as Ray sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).resolve().parent


@pytest.mark.heavy
def test_a_node_that_ec2_takes_gets_no_more_tasks_and_goes_when_its_last_is_done(
    tmp_path: Path,
) -> None:
    paths = os.pathsep.join([str(JOBS.parents[1]), str(JOBS.parent / "unit")])
    done = subprocess.run(
        [sys.executable, str(JOBS / "spot_cluster.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == {"draining": {}, "watching": True}
    assert found["exit code"] == 0
    assert f"Ray drains {found['worker']}" in found["log"]
    assert list(found["draining"]) == [found["worker"]]
    assert abs(found["draining"][found["worker"]] - found["deadline_ms"]) < 10_000
    assert found["nodes of later tasks"] == [found["head"]]
    assert found["kept while the task ran"]
    assert found["node of the running task"] == found["worker"]
    assert found["gone"]
    assert "no live Ray node of instance i-elsewhere" in found["unknown machine"]
