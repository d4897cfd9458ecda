"""Which connections a set of Kubernetes NetworkPolicies lets through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Labels = dict[str, str]


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, or an address outside of the cluster."""

    labels: Labels = field(default_factory=dict)
    namespace: Labels = field(default_factory=dict)
    address: str | None = None


def allowed(
    policies: Iterable[dict[str, Any]], source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Whether both ends let a connection pass: the rules of ``networking.k8s.io/v1``.

    Of selectors, ``matchLabels`` alone is understood. Policies hold for pods of the namespace
    ``fetal-planes``; ends elsewhere are free.
    """
    policies = list(policies)
    wanted = (port, protocol)
    leaves = _passes(policies, source, target, "Egress", "egress", "to", wanted)
    enters = _passes(policies, target, source, "Ingress", "ingress", "from", wanted)
    return leaves and enters


HOME = {"kubernetes.io/metadata.name": "fetal-planes"}


def _passes(
    policies: list[dict[str, Any]],
    pod: Peer,
    other: Peer,
    direction: str,
    rules: str,
    peers: str,
    wanted: tuple[int, str],
) -> bool:
    if pod.namespace != HOME:
        return True
    selected = [
        policy["spec"]
        for policy in policies
        if _matches(policy["spec"]["podSelector"], pod.labels)
        and direction in policy["spec"]["policyTypes"]
    ]
    return not selected or any(
        _rule_passes(rule, peers, other, wanted)
        for policy in selected
        for rule in policy.get(rules, [])
    )


def _rule_passes(rule: dict[str, Any], peers: str, other: Peer, wanted: tuple[int, str]) -> bool:
    ports = [(one["port"], one["protocol"]) for one in rule.get("ports", [])]
    if ports and wanted not in ports:
        return False
    return peers not in rule or any(_is_peer(peer, other) for peer in rule[peers])


def _is_peer(peer: dict[str, Any], other: Peer) -> bool:
    assert set(peer) <= {"ipBlock", "namespaceSelector", "podSelector"}
    if "ipBlock" in peer:
        if other.address is None:
            return False
        address, block = ip_address(other.address), peer["ipBlock"]
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(hole) for hole in block.get("except", [])
        )
    if other.address is not None:
        return False
    here = other.namespace == HOME
    if "namespaceSelector" in peer:
        here = _matches(peer["namespaceSelector"], other.namespace)
    return here and _matches(peer.get("podSelector", {}), other.labels)


def _matches(selector: dict[str, Any], labels: Labels) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()
