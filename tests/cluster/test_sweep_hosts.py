"""A sweep on two hosts, one of which is cut off or killed."""

from __future__ import annotations

import json
from secrets import token_hex
from typing import Any

import pytest

from clusters import Cluster, wait_until
from cohort import history

pytestmark = [pytest.mark.cluster, pytest.mark.heavy]

_SPACE = """
[search]
algorithm = "grid"
include_default = false
scheduler = "none"
[search.space."optim.lr"]
grid = [0.001, 0.002, 0.004]
[train]
epochs = 6
[cluster]
cpus_per_worker = 2  # a trial takes a whole host
threads_per_worker = 1
"""


@pytest.mark.parametrize("loss", ["unplugged", "killed"])
def test_a_sweep_goes_on_without_a_lost_host(cluster: Cluster, preparation: str, loss: str) -> None:
    head, worker = cluster.size(2)
    name = f"sweep-{loss}-{token_hex(2)}"
    trials = [f"runs/{name}/trials/{number:04d}" for number in range(3)]
    (head.folder / "home/space.toml").write_text(_SPACE)
    command = ["python", "-m", "ray_jobs.tune", "s3://cohort/prepared", "--name", name]
    command += ["--config", "space.toml", "--runs", "s3://cohort/runs", "--max-concurrent", "2"]

    def told(trial: str, file: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(cluster.store.get(f"{trial}/{file}") or "{}")
        return found

    def both_work() -> bool:
        at_work = [trial for trial in trials if history(cluster.store, trial)]
        machines = {told(trial, "trial.json").get("machine") for trial in at_work}
        return machines == {head.address, worker.address}

    with head.running(*command) as process:
        wait_until(both_work, process)
        if loss == "killed":
            worker.kill()
        else:
            cluster.network.unplug(worker)
        output, _ = process.communicate(timeout=400)
    worker.kill()
    assert process.returncode == 0, output
    for trial in trials:
        assert told(trial, "result.json")["status"] == "finished", output
        records = history(cluster.store, trial)
        assert [record["epoch"] for record in records] == list(range(1, 7))
        assert told(trial, "trial.json")["machine"] == head.address
    assert cluster.store.keys(f"runs/{name}/best/bundle/model.json")
