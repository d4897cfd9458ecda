"""All that is asked of the machines before a run, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from uuid import uuid4

from fetal_core import storage
from fetal_core.errors import FetalError
from ray_jobs.cluster_checks import (
    CONTROL_PORTS,
    DASHBOARD,
    Clock,
    check_clocks,
    check_exposure,
    check_reach,
    check_storage,
    check_versions,
)
from ray_jobs.findings import Finding
from ray_jobs.machine_checks import check_machine
from ray_jobs.machine_facts import Facts
from ray_jobs.node_probe import Node, NodeError
from ray_jobs.storage_probe import leave_mark, trial_folder

AnswerT = TypeVar("AnswerT")

_ASKED = 16
_CLOCK_ROUNDS = 3


def examine(
    nodes: Sequence[Node], own: Facts, uri: str, probe_bytes: int, dashboard_port: int = 0
) -> list[Finding]:
    """Ask all machines and judge what they answer; one that does not is a finding too.

    Args:
        nodes: the machines; this one alone, or those of a cluster.
        own: facts of the machine that asks.
        uri: storage of runs; nothing is left there.
        probe_bytes: size of the object by which its speed is measured.
        dashboard_port: where it is not Ray's usual one.
    """
    control = CONTROL_PORTS | ({dashboard_port: DASHBOARD} if dashboard_port else {})
    folders = [] if storage.is_remote(uri) else [storage.absolute(uri)]
    facts, findings = _ask_all(nodes, lambda node: node.probe.facts(folders))
    answering = [node for node in nodes if node.name in facts]
    for node in answering:
        found = facts[node.name]
        findings += check_machine(node.name, found, node.share)
        findings += check_exposure(node.name, found, control, node.address)
    findings += check_versions(facts, own)
    findings += _storage(answering, uri, probe_bytes)
    if any(node.address for node in answering):
        clocks, silent = _ask_all(answering, _clock)
        findings += [*silent, *check_clocks(clocks), *_reach(answering)]
    return findings


def _ask_all(
    nodes: Sequence[Node], ask: Callable[[Node], AnswerT]
) -> tuple[dict[str, AnswerT], list[Finding]]:
    """Answers by the names of nodes, and a finding for each that did not answer."""
    answers: dict[str, AnswerT] = {}
    silent: list[Finding] = []
    remedy = (
        "Look at the node's logs (ray logs cluster); the same package must be installed there, "
        "and a process must be able to start."
    )

    def answer(node: Node) -> tuple[str, AnswerT | NodeError]:
        try:
            return node.name, ask(node)
        except NodeError as error:
            return node.name, error

    with ThreadPoolExecutor(min(_ASKED, len(nodes) or 1)) as pool:
        for name, found in pool.map(answer, nodes):
            if isinstance(found, NodeError):
                silent.append(Finding("answer", name, "fail", str(found), remedy))
            else:
                answers[name] = found
    return answers, silent


def _clock(node: Node) -> Clock:
    """The surest of a few comparisons."""
    found = []
    for _ in range(_CLOCK_ROUNDS):
        before_s = time.time()
        there_s = node.probe.clock_s()
        after_s = time.time()
        found.append(Clock(there_s - (before_s + after_s) / 2, (after_s - before_s) / 2))
    return min(found, key=lambda clock: clock.doubt_s)


def _storage(nodes: Sequence[Node], uri: str, probe_bytes: int) -> list[Finding]:
    several = len(nodes) > 1
    with trial_folder(uri, f".fetal-doctor-{uuid4().hex}") as folder:
        if several:
            try:
                leave_mark(folder)
            except FetalError:
                several = False  # the trials will say why
        # Not the names of nodes: these may hold what no file name may.
        numbers = {node.name: str(number) for number, node in enumerate(nodes)}
        found, silent = _ask_all(
            nodes,
            lambda node: node.probe.storage(folder, numbers[node.name], probe_bytes, several),
        )
    for name, facts in found.items():
        silent += check_storage(name, uri, facts)
    return silent


def _reach(nodes: Sequence[Node]) -> list[Finding]:
    """Each machine connects to Ray on all others, and to a process as training starts them."""
    opened, findings = _ask_all(nodes, lambda node: node.probe.listen())
    targets = {
        node.name: [
            *(
                (f"{what} of {node.name} ({node.address}:{port})", node.address, port)
                for what, port in node.ports
            ),
            *(
                (f"a worker of {node.name} ({node.address}:{port})", node.address, port)
                for port in opened.get(node.name, ())
            ),
        ]
        for node in nodes
    }

    def others(node: Node) -> list[tuple[str, str, int]]:
        return [target for name in targets if name != node.name for target in targets[name]]

    tried, silent = _ask_all(
        nodes,
        lambda node: node.probe.reach([(address, port) for _, address, port in others(node)]),
    )
    for node in nodes:
        if node.name in tried:
            words = [what for what, _, _ in others(node)]
            findings += check_reach(node.name, words, tried[node.name])
    return findings + silent
