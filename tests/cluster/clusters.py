"""A Ray cluster whose machines share nothing but an S3 store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from hosts import NETWORK, SWITCH, Host, Network

CPUS = 2
BUCKET = "cohort"
OBJECT_STORE_BYTES = 200_000_000
_START_S = 200
_KEY, _SECRET = "cluster-test", "cluster-test-secret"
_STORE = {
    "AWS_ENDPOINT_URL": f"http://{SWITCH}:9000",
    "AWS_ACCESS_KEY_ID": _KEY,
    "AWS_SECRET_ACCESS_KEY": _SECRET,
    "AWS_REGION": "us-east-1",
    # The store does not know checksums that follow the body.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
RAY = {
    "RAY_ADDRESS": f"{NETWORK}.1:6379",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
    "OMP_NUM_THREADS": "1",
    # A machine that is gone is known to be so within seconds instead of half a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


def wait_until(
    ready: Callable[[], bool], *processes: subprocess.Popen[str], limit_s: float = 400
) -> None:
    """Return when ``ready`` holds; fail if a process ends before, or too late."""
    deadline_s = time.monotonic() + limit_s
    while not ready():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.2)


class Store:
    """The S3 store, as the tests see it."""

    def __init__(self, net: Network) -> None:
        self._switch = net.switch
        self._client = boto3.client(
            "s3",
            endpoint_url=_STORE["AWS_ENDPOINT_URL"],
            aws_access_key_id=_KEY,
            aws_secret_access_key=_SECRET,
            region_name="us-east-1",
        )

    def put(self, folder: Path, prefix: str) -> str:
        """Copy a folder into the store; its URI."""
        with self._switch.entered():
            for file in filter(Path.is_file, folder.rglob("*")):
                key = f"{prefix}/{file.relative_to(folder)}"
                self._client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with a prefix."""
        with self._switch.entered():
            pages = self._client.get_paginator("list_objects_v2")
            found = pages.paginate(Bucket=BUCKET, Prefix=prefix)
            return [item["Key"] for page in found for item in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        """An object; empty where there is none."""
        with self._switch.entered():
            try:
                answer: Any = self._client.get_object(Bucket=BUCKET, Key=key)
                data: bytes = answer["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return b""
        return data

    def fetch(self, prefix: str, folder: Path) -> Path:
        """Copy what begins with a prefix to this machine."""
        for key in self.keys(prefix):
            target = folder / key.removeprefix(prefix).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.get(key))
        return folder


class Cluster:
    """Hosts with Ray, the first of which is the head.

    Args:
        object_store_bytes: what each host holds in memory for Ray's processes to share.
    """

    def __init__(
        self, net: Network, store: Store, object_store_bytes: int = OBJECT_STORE_BYTES
    ) -> None:
        self.network, self.store = net, store
        self._object_store_bytes = object_store_bytes
        self.head = self._add("--head", "--port=6379", "--dashboard-host=0.0.0.0")
        wait_until(self._head_listens, limit_s=_START_S)

    def join(self) -> Host:
        """One more host of the cluster."""
        return self._add(f"--address={self.head.address}:6379")

    def size(self, hosts: int) -> list[Host]:
        """Add or end hosts until there are so many, the head first; wait until Ray knows."""
        workers = [host for host in self.network.hosts[1:] if host.alive]
        for host in workers[hosts - 1 :]:
            host.kill()
        for _ in range(hosts - 1 - len(workers)):
            self.join()
        self._wait_for(hosts)
        return [host for host in self.network.hosts if host.alive]

    def _add(self, *words: str) -> Host:
        host = self.network.add(_STORE | RAY)
        host.daemon(
            "ray",
            *("ray", "start", "--block", f"--node-ip-address={host.address}"),
            *(f"--num-cpus={CPUS}", f"--object-store-memory={self._object_store_bytes}"),
            *words,
        )
        return host

    def _head_listens(self) -> bool:
        return self.head.run("bash", "-c", f"</dev/tcp/{self.head.address}/6379")[0] == 0

    def _wait_for(self, hosts: int) -> None:
        watch = (
            "import ray, sys, time\n"
            "ray.init(logging_level='ERROR', log_to_driver=False)\n"
            "while sum(n['Alive'] for n in ray.nodes()) != int(sys.argv[1]): time.sleep(0.1)\n"
        )
        code, output = self.head.run("python", "-c", watch, str(hosts), timeout_s=_START_S)
        assert code == 0, output


@contextmanager
def s3_store(net: Network) -> Iterator[Store]:
    """An S3 server on the network's switch, with one bucket."""
    juicefs = str(Path(sys.executable).parent / "juicefs")
    meta = f"sqlite3://{net.folder}/store.db"
    subprocess.run(
        [juicefs, "format", "--storage=file", f"--bucket={net.folder}/objects/", meta, BUCKET],
        check=True,
        capture_output=True,
    )
    gateway = [juicefs, "gateway", meta, f"{SWITCH}:9000", f"--cache-dir={net.folder}/cache"]
    gateway += ["--no-usage-report", "--no-bgjob", "--backup-meta=0", "--no-banner"]
    environment = os.environ | {"MINIO_ROOT_USER": _KEY, "MINIO_ROOT_PASSWORD": _SECRET}
    with (net.folder / "store.log").open("w") as log:
        # It ends with this process, even where that is killed.
        command = net.switch.enter("setpriv", "--pdeathsig=KILL", *gateway)
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            listening = f"</dev/tcp/{SWITCH}/9000"
            probe = net.switch.enter("bash", "-c", listening)
            wait_until(lambda: subprocess.run(probe, capture_output=True).returncode == 0)
            yield Store(net)
        finally:
            process.kill()
            process.wait()


def train_command(
    name: str, *words: str, prepared: str = "s3://cohort/prepared", runs: str = "s3://cohort/runs"
) -> list[str]:
    """`fetal train` whose workers each take a whole host."""
    command = ["python", "-m", "ray_jobs.train", prepared, "--runs", runs, "--name", name]
    return [*command, "--cluster.cpus-per-worker", "2", "--cluster.threads-per-worker", "1", *words]
