"""One cluster and one cohort for all tests; a host that a test has ended is replaced by a new one.

Only an S3 store is shared: the hosts cannot see each other's files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import Cluster, s3_store, train_command
from cohort import SETTINGS, Reference, flags, write_images
from hosts import missing, network
from required import lack


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        lack(reason)
    with network() as net, s3_store(net) as store:
        yield Cluster(net, store)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of patients, on this machine."""
    return write_images(tmp_path_factory.mktemp("cohort") / "data", patients=40, views=5)


@pytest.fixture(scope="session")
def data(cluster: Cluster, cohort: Path) -> str:
    """The same in the store."""
    return cluster.store.put(cohort, "data")


@pytest.fixture(scope="session")
def preparation(cluster: Cluster, data: str) -> str:
    """What `fetal prepare` on two hosts said."""
    head, _ = cluster.size(2)
    command = ("python", "-m", "ray_jobs.prepare", data, "--out", "s3://cohort/prepared")
    code, output = head.run(*command, *flags(SETTINGS))
    assert code == 0, output
    return output


@pytest.fixture(scope="session")
def reference(
    cluster: Cluster, preparation: str, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    """Training by one process on what the hosts have prepared."""
    folder = tmp_path_factory.mktemp("reference")
    cluster.store.fetch("prepared", folder / "prepared")
    return Reference(folder / "prepared/shards", folder)


@pytest.fixture(scope="session")
def trained(cluster: Cluster, preparation: str) -> str:
    """A run of two hosts, one worker on each; its key in the store."""
    hosts = cluster.size(2)
    code, output = hosts[0].run(*train_command("plain", "--cluster.workers", "2"))
    assert code == 0, output
    # A worker takes all CPUs of a host, and each has left its log where it ran.
    for host in hosts:
        assert list(host.folder.glob("ray/session_*/logs/train/*worker*.log")), host.name
    return "runs/plain"
