"""A cluster of two nodes, one of which EC2 takes; prints as JSON what became of it.

A process of its own, since the tests' process has a cluster already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

# Ray reads it when it is imported.
os.environ["RAY_AUTH_MODE"] = "disabled"

import ray
from ray._private.state import state
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metadata_server import NOTICE, FakeMetadata, metadata_server
from ray_jobs.spot_watcher import DrainError, Machine, nodes_of

WAIT_S = 60
LEFT_S = 100
STORE_BYTES = 100 * 2**20


@ray.remote
def where() -> str:
    return str(ray.get_runtime_context().get_node_id())


@ray.remote
def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.05)
    return str(ray.get_runtime_context().get_node_id())


def wait(condition: Callable[[], Any]) -> Any:
    """The condition's value once it is true; its last one after ``WAIT_S``."""
    end_s = time.monotonic() + WAIT_S
    while not (value := condition()) and time.monotonic() < end_s:
        time.sleep(0.1)
    return value


def alive(node_id: str) -> bool:
    nodes: list[dict[str, Any]] = ray.nodes()
    return any(node["NodeID"] == node_id and node["Alive"] for node in nodes)


def watch(address: str, server: FakeMetadata) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ray_jobs.spot_watcher", "--address", address]
    command += ["--metadata-url", server.url, "--poll-s", "0.2"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def unknown_machine(address: str) -> str:
    try:
        return str(nodes_of(address, Machine("i-elsewhere", "192.0.2.1")))
    except DrainError as error:
        return str(error)


def scenario(cluster: Cluster, server: FakeMetadata, done: Path) -> dict[str, Any]:
    """EC2 takes the worker while a task runs there."""
    instance = {"RAY_CLOUD_INSTANCE_ID": server.values["instance-id"]}
    worker = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, env_vars=instance)
    ray.init(address=cluster.address, log_to_driver=False)
    strategy = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
    task = wait_for.options(scheduling_strategy=strategy).remote(str(done))
    watcher = watch(cluster.address, server)
    wait(lambda: NOTICE in server.asked)
    before = {"draining": state.get_draining_nodes(), "watching": watcher.poll() is None}

    deadline = datetime.now(UTC) + timedelta(seconds=LEFT_S)
    notice = {"action": "terminate", "time": f"{deadline:%Y-%m-%dT%H:%M:%SZ}"}
    server.values[NOTICE] = json.dumps(notice)
    _, log = watcher.communicate(timeout=WAIT_S)
    draining = state.get_draining_nodes()
    later = ray.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(6)])
    kept = alive(worker.node_id)
    done.touch()
    return {
        "worker": worker.node_id,
        "head": cluster.head_node.node_id,
        "before": before,
        "deadline_ms": deadline.timestamp() * 1000,
        "exit code": watcher.returncode,
        "log": log,
        "draining": draining,
        "nodes of later tasks": sorted(set(later)),
        "kept while the task ran": kept,
        "node of the running task": ray.get(task),
        "gone": wait(lambda: not alive(worker.node_id)),
        "unknown machine": unknown_machine(cluster.address),
    }


def main(folder: Path) -> None:
    head = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        with metadata_server() as server:
            found = scenario(cluster, server, folder / "done")
    finally:
        ray.shutdown()
        cluster.shutdown()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
