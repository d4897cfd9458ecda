"""What the machines of a cluster must have in common and between them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray_jobs.findings import Finding
from ray_jobs.machine_facts import Facts, is_loopback
from ray_jobs.storage_probe import StorageFacts

_SKEW_WARN_S = 2.0
_SKEW_FAIL_S = 60.0
_STORE_WARN_S = 60.0
_STORE_FAIL_S = 900.0  # S3 refuses requests from then on
_SLOW_BYTES_S = 10e6

# Whoever reaches these runs programs, sees all jobs or reads statistics.
DASHBOARD = "dashboard and job server"
CONTROL_PORTS = {
    8265: DASHBOARD,
    10001: "Ray client",
    8404: "statistics of Ray Serve's HAProxy",
    9101: "metrics of Ray Serve's HAProxy",
}


@dataclass(frozen=True)
class Clock:
    """A machine's clock against that of the machine that asks.

    Attributes:
        ahead_s: by how much it is ahead.
        doubt_s: half of the time that asking took.
    """

    ahead_s: float
    doubt_s: float


def check_versions(facts: Mapping[str, Facts], own: Facts) -> Iterator[Finding]:
    """All machines against the one that asks; CUDA builds of a version count as that version."""
    agreeing = True
    for node, found in facts.items():
        differing = []
        for package, wanted in own.versions.items():
            there = found.versions.get(package, "")
            if _public(there) != _public(wanted):
                differing.append(f"{package} {there or 'missing'} (here {wanted or 'missing'})")
        if differing:
            agreeing = False
            remedy = (
                "Install the same versions there (constraints.txt), or start the node from the "
                "same image; objects that Ray passes on may not be readable otherwise."
            )
            yield Finding("same-versions", node, "fail", "; ".join(differing), remedy)
    if agreeing and len(facts) > 1:
        yield Finding("same-versions", "cluster", "ok", f"{len(facts)} nodes have equal versions")


def _public(version: str) -> str:
    return version.partition("+")[0]


def check_clocks(clocks: Mapping[str, Clock]) -> Iterator[Finding]:
    """Clocks of the machines against that of the one that asks."""
    for node, clock in clocks.items():
        certain_s = max(0.0, abs(clock.ahead_s) - clock.doubt_s)
        seen = _apart(clock.ahead_s, "the clock here") + f" +- {clock.doubt_s * 1000:.0f} ms"
        yield _clock("clock", node, certain_s, seen, _SKEW_WARN_S, _SKEW_FAIL_S)


def check_storage(node: str, uri: str, found: StorageFacts) -> Iterator[Finding]:
    """What a machine could do in the storage of runs."""
    if found.ahead_s is not None:
        seen, off_s = _apart(found.ahead_s, "the clock of the store"), abs(found.ahead_s)
        yield _clock("clock-of-store", node, off_s, seen, _STORE_WARN_S, _STORE_FAIL_S)
    if found.fault:
        remedy = (
            "Check the address, the credentials and the rights to list, get, put and delete under "
            "this prefix; the store must know conditional writes (If-Match, If-None-Match)."
            if "://" in uri
            else "Give another --storage, or the right to write there."
        )
        yield Finding("storage", node, "fail", f"{uri}: {found.fault}", remedy)
        return
    if found.shared is False:
        remedy = "Put runs where all machines reach them: a shared folder or s3://."
        seen = f"{uri}: does not see what another node has written there"
        yield Finding("storage", node, "fail", seen, remedy)
        return
    write_mb_s, read_mb_s = found.write_bytes_s / 1e6, found.read_bytes_s / 1e6
    seen = (
        f"{uri}: written, read, listed, swapped, deleted; "
        f"writes {write_mb_s:.0f} MB/s, reads {read_mb_s:.0f} MB/s"
    )
    if min(found.write_bytes_s, found.read_bytes_s) < _SLOW_BYTES_S:
        remedy = "Take a store in the same region or on the same network, or a faster disk."
        yield Finding("storage", node, "warn", seen, remedy)
    else:
        yield Finding("storage", node, "ok", seen)


def check_reach(node: str, wanted: Sequence[str], refusals: Sequence[str]) -> Iterator[Finding]:
    """Connections that a machine tried to make to others.

    Args:
        node: which tried.
        wanted: what it tried to reach, in words.
        refusals: for each of them why it did not; empty where it did.
    """
    failed = [f"{what}: {why}" for what, why in zip(wanted, refusals, strict=True) if why]
    if failed:
        remedy = "Let the machines of the cluster reach each other on all ports of TCP."
        yield Finding("ports", node, "fail", "no connection to " + "; ".join(failed), remedy)
    elif wanted:
        yield Finding("ports", node, "ok", f"reaches {len(wanted)} ports of the other nodes")


def check_exposure(
    node: str, facts: Facts, control: Mapping[int, str], address: str
) -> Iterator[Finding]:
    """Ports that command the cluster must not be open to others.

    Args:
        node: name of the machine.
        facts: what it answered.
        control: ports of TCP that are to be closed, and what listens there.
        address: of the machine in the cluster that is checked; empty if it is in none.
    """
    exposed = {
        f"{control[port]} on {where}:{port}"
        for where, port in facts.listening
        if port in control and not is_loopback(where)
    }
    if address and ipaddress.ip_address(address).is_global:
        exposed.add(f"all of Ray on the public address {address}")
    if not exposed:
        yield Finding("exposure", node, "ok", "no control port listens beyond this machine")
        return
    seen = "; ".join(sorted(exposed))
    remedy = (
        "Start Ray with --dashboard-host=127.0.0.1 on a private address and reach the dashboard "
        "through an SSH tunnel or kubectl port-forward; else let a firewall or network policy "
        "keep these ports inside."
    )
    if address and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        remedy += " Set RAY_AUTH_MODE=token on all nodes: without it whoever connects runs code."
        yield Finding("exposure", node, "fail", seen, remedy)
    else:
        yield Finding("exposure", node, "warn", seen, remedy)


def _clock(check: str, node: str, off_s: float, seen: str, warn_s: float, fail_s: float) -> Finding:
    if off_s < warn_s:
        return Finding(check, node, "ok", seen)
    remedy = "Let chrony or systemd-timesyncd set the clock, on the host if this is a container."
    return Finding(check, node, "fail" if off_s >= fail_s else "warn", seen, remedy)


def _apart(ahead_s: float, whose: str) -> str:
    side = "ahead of" if ahead_s > 0 else "behind"
    return f"{abs(ahead_s):.1f} s {side} {whose}"
