"""Training on two hosts: the numbers of one process."""

from __future__ import annotations

import pytest

from clusters import Cluster
from cohort import Reference, history

pytestmark = [pytest.mark.cluster, pytest.mark.heavy]


def test_two_hosts_train_as_one_process_does(
    cluster: Cluster, trained: str, reference: Reference
) -> None:
    assert {record["workers"] for record in history(cluster.store, trained)} == {2}
    # A worker takes all CPUs of a host, and each has left its log where it ran.
    for host in cluster.network.hosts[:2]:
        assert list(host.folder.glob("ray/session_*/logs/train/*worker*.log")), host.name
    reference.expect(cluster.store, trained, {})
