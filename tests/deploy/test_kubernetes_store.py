"""The way to an object store of one's own: the overlay that the README of the manifests shows."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest

from manifests import KUBERNETES, Object, parsed, render
from network_rules import Peer, allowed
from test_kubernetes_network import POLICIES as PLAIN
from test_kubernetes_network import REPLICA, S3, STRANGER, TRAIN_HEAD, TRAINER, elsewhere
from test_kubernetes_schemas import KUBERNETES_VERSION

README = (KUBERNETES / "README.md").read_text("utf-8")
MINE, PATCH = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
MINIO, BESIDE = elsewhere("minio", app="minio"), elsewhere("minio", app="console")
PROXY = Peer(address="10.20.0.5")
OURS = (REPLICA, TRAINER, TRAIN_HEAD)


def policies(folder: Path, kustomization: str) -> list[Object]:
    """Network rules of an overlay of one's own."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    mine = folder / "kubernetes/overlays/mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(kustomization, "utf-8")
    found = [one for one in parsed(render(mine)) if one["kind"] == "NetworkPolicy"]
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES_VERSION, strict=True)
        assert one["metadata"]["namespace"] == "fetal-planes"
    return found


@pytest.mark.parametrize("pod", OURS)
def test_nothing_but_port_443_is_open_without_it(pod: Peer) -> None:
    assert not allowed(PLAIN, pod, MINIO, 9000)
    assert not allowed(PLAIN, pod, PROXY, 3128)


def test_a_store_in_the_cluster_can_be_reached_and_nothing_beside_it(tmp_path: Path) -> None:
    found = policies(tmp_path, MINE)
    assert len(found) == len(PLAIN) + 1
    for pod in OURS:
        assert allowed(found, pod, MINIO, 9000)
        assert allowed(found, pod, S3, 443)
        assert not allowed(found, pod, BESIDE, 9000)
        assert not allowed(found, pod, STRANGER, 9000)
        assert not allowed(found, pod, MINIO, 9001)
        assert not allowed(found, MINIO, pod, 8265)
    assert not allowed(found, TRAINER, REPLICA, 9000)


def test_a_proxy_can_be_reached_and_no_other_address(tmp_path: Path) -> None:
    found = policies(tmp_path, MINE + PATCH)
    for pod in OURS:
        assert allowed(found, pod, PROXY, 3128)
        assert not allowed(found, pod, replace(PROXY, address="10.20.0.6"), 3128)
        assert not allowed(found, pod, PROXY, 9000)
        assert not allowed(found, pod, MINIO, 9000)
