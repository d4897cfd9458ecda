"""Jobs on a cluster that has no machine for them until its autoscaler starts one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusters import CPUS, OBJECT_STORE_BYTES, RAY, train_command, wait_until
from cohort import SETTINGS, flags
from hosts import Host, missing, network
from required import lack

pytestmark = [pytest.mark.cluster, pytest.mark.heavy]

# Ray's own provider for tests starts its machines as processes on the head's; the file with its
# defaults is not in Ray's wheel.
TABLES = ("file_mounts", "auth", "docker")
LISTS = (
    *("cluster_synced_files", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "head_start_ray_commands"),
    *("worker_setup_commands", "worker_start_ray_commands"),
)
NOTHING: dict[str, Any] = {key: {} for key in TABLES} | {key: [] for key in LISTS}
AUTOSCALER = NOTHING | {
    "cluster_name": "growing",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "file_mounts_sync_continuously": False,
    "provider": {"type": "fake_multinode", "disable_node_updaters": True},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": CPUS, "object_store_memory": OBJECT_STORE_BYTES},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "head_node_type": "ray.head.default",
}
GROUPS = [{"most": 2, "resources": {"CPU": CPUS}}]


@pytest.fixture(scope="module")
def head(cohort: Path) -> Iterator[Host]:
    if reason := missing():
        lack(reason)
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with network() as net:
        host = net.add(RAY | fake | {"FETAL_NODE_GROUPS": json.dumps(GROUPS)})
        shutil.copytree(cohort, host.folder / "home/data")
        (host.folder / "home/autoscaler.yaml").write_text(json.dumps(AUTOSCALER))
        host.daemon(
            "ray",
            *("ray", "start", "--block", "--head", "--port=6379", "--num-cpus=0"),
            *(f"--node-ip-address={host.address}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            "--autoscaling-config=autoscaler.yaml",
        )
        address = f"</dev/tcp/{host.address}/6379"
        wait_until(lambda: host.run("bash", "-c", address)[0] == 0)
        yield host


def machines(head: Host) -> int:
    """How many machines that can compute the cluster has."""
    count = (
        "import ray\n"
        "ray.init(logging_level='ERROR', log_to_driver=False)\n"
        "print(sum(node['Alive'] and 'CPU' in node['Resources'] for node in ray.nodes()))"
    )
    code, output = head.run("python", "-c", count)
    assert code == 0, output
    return int(output.split()[-1])


@pytest.fixture(scope="module")
def prepared(head: Host) -> str:
    """Shards that were made on a cluster without compute."""
    assert machines(head) == 0
    prepare = ("python", "-m", "ray_jobs.prepare", "data", "--out", "prepared")
    code, output = head.run(*prepare, *flags(SETTINGS))
    assert code == 0, output
    assert machines(head) == 1
    return "prepared"


def train(head: Host, prepared: str, workers: int) -> tuple[int, str]:
    words = ("--cluster.workers", str(workers))
    return head.run(*train_command(f"on-{workers}", *words, prepared=prepared, runs="runs"))


def test_training_waits_until_its_machines_are_there(head: Host, prepared: str) -> None:
    code, output = train(head, prepared, workers=2)
    assert code == 0, output
    assert "4 logical CPUs are needed, 2 are here: waiting for machines" in output
    assert machines(head) == 2


def test_what_the_cluster_cannot_grow_to_is_refused(head: Host, prepared: str) -> None:
    code, output = train(head, prepared, workers=3)
    assert code == 2, output
    assert "need 6 logical CPUs, but the cluster has 4" in output
