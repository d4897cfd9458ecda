"""Who reaches whom by the network policies, for the pods as they are rendered."""

from __future__ import annotations

import pytest

from manifests import RayPods, named, objects, ray_pods
from network_rules import HOME, Peer, allowed

POLICIES = [one for one in objects("cpu") if one["kind"] == "NetworkPolicy"]
S3, METADATA = Peer(address="52.218.0.1"), Peer(address="169.254.169.254")


def pods(overlay: str, where: str) -> Peer:
    (found,) = (one for one in ray_pods(overlay) if where in one.where)
    return Peer(found.labels, HOME)


def elsewhere(namespace: str, **labels: str) -> Peer:
    names = {key.replace("_", "/", 1): value for key, value in labels.items()}
    return Peer(names, {"kubernetes.io/metadata.name": namespace})


REPLICA, SERVE_HEAD = pods("cpu", "RayService/planes workers"), pods("cpu", "planes head")
TRAINER, TRAIN_HEAD = pods("cpu/train", "workers"), pods("cpu/train", "head")
OPERATOR = Peer(
    {"app.kubernetes.io/name": "kuberay-operator"},
    {"kubernetes.io/metadata.name": "kuberay-operator"},
)
PROMETHEUS = Peer(
    {"app.kubernetes.io/name": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"}
)
CALLER = Peer({}, {"kubernetes.io/metadata.name": "ingress", "fetal-planes/may-call": "true"})
STRANGER, NEIGHBOUR = elsewhere("default"), Peer({"app": "other"}, HOME)
DNS = Peer({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"})
API = Peer(address="172.20.0.1")


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        (CALLER, REPLICA, 8000),
        (OPERATOR, SERVE_HEAD, 8265),
        (OPERATOR, TRAIN_HEAD, 8265),
        (PROMETHEUS, TRAINER, 8080),
        (PROMETHEUS, REPLICA, 8000),
        (SERVE_HEAD, REPLICA, 31234),
        (REPLICA, SERVE_HEAD, 6379),
        (TRAINER, TRAIN_HEAD, 6379),
        (TRAINER, TRAINER, 45678),  # collective training chooses its ports
        (TRAINER, S3, 443),
        (REPLICA, S3, 443),
        (TRAINER, DNS, 53),
        (TRAIN_HEAD, API, 443),
        (TRAIN_HEAD, API, 6443),
    ],
)
def test_what_must_pass_passes(source: Peer, target: Peer, port: int) -> None:
    assert allowed(POLICIES, source, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        *((source, SERVE_HEAD, 8265) for source in (CALLER, STRANGER, NEIGHBOUR, PROMETHEUS)),
        *((source, TRAIN_HEAD, 8265) for source in (CALLER, STRANGER, NEIGHBOUR, REPLICA)),
        *((source, TRAIN_HEAD, 6379) for source in (CALLER, STRANGER, OPERATOR, REPLICA)),
        (STRANGER, REPLICA, 8000),
        (CALLER, REPLICA, 52365),
        (CALLER, TRAINER, 8000),
        (TRAINER, REPLICA, 8000),
        (TRAINER, METADATA, 80),
        (TRAINER, METADATA, 443),
        (TRAINER, S3, 80),
        (TRAINER, API, 6443),
        (TRAINER, STRANGER, 443),
        (NEIGHBOUR, S3, 443),
    ],
)
def test_what_must_not_pass_is_denied(source: Peer, target: Peer, port: int) -> None:
    assert not allowed(POLICIES, source, target, port)


def test_names_are_looked_up_by_udp_too() -> None:
    assert allowed(POLICIES, TRAINER, DNS, 53, "UDP")
    assert not allowed(POLICIES, TRAINER, S3, 53, "UDP")


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_every_monitored_port_is_a_port_of_the_pods_it_selects(overlay: str) -> None:
    for name in ("fetal-ray", "fetal-serve"):
        spec = named(overlay, "PodMonitor", name)["spec"]
        chosen: list[RayPods] = [
            found
            for found in ray_pods(overlay)
            if spec["selector"]["matchLabels"].items() <= found.labels.items()
        ]
        assert chosen
        for found in chosen:
            ports = {port["name"]: port["containerPort"] for port in found.container["ports"]}
            for endpoint in spec["podMetricsEndpoints"]:
                assert allowed(
                    POLICIES, PROMETHEUS, Peer(found.labels, HOME), ports[endpoint["port"]]
                )


def test_no_service_or_ingress_makes_a_port_public() -> None:
    kinds = {one["kind"] for overlay in ("cpu", "gpu") for one in objects(overlay)}
    assert not kinds & {"Ingress", "Service", "Route", "Gateway"}
    for overlay in ("cpu", "gpu"):
        for found in ray_pods(overlay):
            assert "enableIngress" not in found.group
            assert found.group.get("serviceType", "ClusterIP") == "ClusterIP"
