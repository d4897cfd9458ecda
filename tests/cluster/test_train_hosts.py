"""Training on two hosts: the numbers of one process, whatever happens to a host."""

from __future__ import annotations

from itertools import groupby
from secrets import token_hex

import pytest

from clusters import Cluster, train_command, wait_until
from cohort import Reference, flags, history
from hosts import Host

DRAIN = """
import subprocess, sys

import ray

ray.init(logging_level="ERROR", log_to_driver=False)
(node,) = [n for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == sys.argv[1]]
subprocess.run(
    ["ray", "drain-node", "--node-id", node["NodeID"], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    + ["--reason-message", "spot notice", "--deadline-remaining-seconds", "15"],
    check=True,
)
"""

pytestmark = [pytest.mark.cluster, pytest.mark.heavy]


def test_two_hosts_train_as_one_process_does(
    cluster: Cluster, trained: str, reference: Reference
) -> None:
    assert {record["workers"] for record in history(cluster.store, trained)} == {2}
    reference.expect(cluster.store, trained, {})


def test_a_folder_that_one_host_alone_sees_is_refused_before_training(
    cluster: Cluster, preparation: str
) -> None:
    head, worker = cluster.size(2)
    code, output = head.run(*train_command("here", runs="/tmp/home/runs"))
    assert code == 2, output
    assert f"/tmp/home/runs/here/run.json: not to be seen from {worker.address}" in output
    assert "epoch" not in output


def test_a_lost_host_is_replaced_and_the_numbers_stay_the_same(
    cluster: Cluster, preparation: str, reference: Reference
) -> None:
    head, worker = cluster.size(2)
    epochs = {"train": {"epochs": 10}}
    command = train_command("replaced", "--cluster.workers", "2", *flags(epochs))
    with head.running(*command) as process:
        # Written with the first checkpoint.
        snapshot = "runs/replaced/checkpoints/checkpoint_manager_snapshot.json"
        wait_until(lambda: bool(cluster.store.get(snapshot)), process)
        worker.kill()
        cluster.join()
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "resuming after epoch" in output
    assert {record["workers"] for record in history(cluster.store, "runs/replaced")} == {2}
    reference.expect(cluster.store, "runs/replaced", epochs)


def test_a_host_about_to_be_taken_is_left_with_a_checkpoint(
    cluster: Cluster, preparation: str, reference: Reference
) -> None:
    head, *workers = cluster.size(3)
    epochs = {"train": {"epochs": 80}}
    name = f"drained-{token_hex(2)}"
    # A host that leaves in order is no failure.
    settings = ("--cluster.workers", "2", "--cluster.max-failures", "0")
    with head.running(*train_command(name, *settings, *flags(epochs))) as process:
        wait_until(lambda: len(history(cluster.store, f"runs/{name}")) >= 2, process)
        taken = next(host for host in workers if _trains(host))
        code, said = head.run("python", "-c", DRAIN, taken.address)
        assert code == 0, said
        wait_until(lambda: not _trains(taken), process)
        taken.kill()
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "a machine is about to be taken: a checkpoint is written ahead" in output
    assert "\nresuming " in output
    assert "a worker was lost" not in output
    assert {record["workers"] for record in history(cluster.store, f"runs/{name}")} == {2}
    reference.expect(cluster.store, f"runs/{name}", epochs)


def test_hosts_come_and_go_during_elastic_training(
    cluster: Cluster, preparation: str, reference: Reference
) -> None:
    (head,) = cluster.size(1)
    # Ray looks for new hosts every 20 seconds at most, in which a fast machine does 40 epochs.
    epochs = {"train": {"epochs": 120}}
    name = f"elastic-{token_hex(2)}"
    workers = ("--cluster.workers", "2", "--cluster.min-workers", "1")
    command = train_command(name, *workers, "--cluster.look-again-s", "2", *flags(epochs))

    def done(workers: int) -> int:
        records = history(cluster.store, f"runs/{name}")
        return sum(record["workers"] == workers for record in records)

    with head.running(*command) as process:
        wait_until(lambda: done(1) >= 2, process)
        joined = cluster.join()
        # Ray collects reports every two seconds: epochs that it has not heard of are repeated.
        wait_until(lambda: done(2) >= 6, process)
        joined.kill()
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "workers: 2, with 4 + 4 images of each batch of 8" in output
    assert "workers: 1, with 8 images of each batch of 8" in output
    changes = [key for key, _ in groupby(history(cluster.store, f"runs/{name}"), _workers)]
    assert changes == [1, 2, 1]
    reference.expect(cluster.store, f"runs/{name}", epochs)


def _trains(host: Host) -> bool:
    """Whether a training worker runs there; once it works, Ray gives its process this name."""
    return any("RayTrainWorker" in line for line in host.processes())


def _workers(record: dict[str, int]) -> int:
    return record["workers"]
