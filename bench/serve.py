"""Requests a second and answer times of `fetal serve` beside its limit and its peers.

    python -m bench.serve IMAGES --peers peers/bin/python

The same PNG files are posted by wrk to each contender; all run the same INT8 ResNet50 at 224 px and
share the functions that decode and resize. The ceiling is that work in one process without HTTP.

Machines change their speed within minutes, so that all contenders run at once, every turn is short,
all but one are stopped (SIGSTOP) meanwhile, and what is compared are the ratios within a round.
Needs wrk, and for the peers an environment made from `bench/serving/peers.txt`.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.serving.contenders import OURS, ROOT, Server, contenders, running
from bench.serving.load import Figures, post
from bench.serving.model import write_bundle

CONNECTIONS = (1, 4, 16, 64)
_HALF_LOAD_CLIENTS = 4


@dataclass(frozen=True)
class Turn:
    """What one contender did in one round."""

    figures: Figures
    cpu_ms: float
    """Processor time of the server for a request."""


@dataclass
class Results:
    """Turns by contender and number of connections, in the order of the rounds."""

    turns: dict[tuple[str, int], list[Turn]] = field(default_factory=dict)
    half: dict[str, list[Figures]] = field(default_factory=dict)
    limits: list[float] = field(default_factory=list)

    def median(self, name: str, connections: int, of: Callable[[Turn], float]) -> float:
        """Over the rounds."""
        return statistics.median(of(turn) for turn in self.turns[name, connections])


def rate(turn: Turn) -> float:
    """Requests a second."""
    return turn.figures.rate_per_s


def p99(turn: Turn) -> float:
    """99th percentile of the answer times, ms."""
    return turn.figures.p99_ms


def ceiling(images: Path, bundle: str, python: str, seconds: float) -> float:
    """Images a second of the same work without HTTP."""
    command = [python, "-m", "bench.serving.ceiling", str(images), "--seconds", str(seconds)]
    environment = os.environ | {"BENCH_BUNDLE": bundle}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return float(run.stdout.rpartition("CEILING ")[2])


def one_turn(server: Server, folder: Path, connections: int, seconds: float) -> Turn:
    """Post to one server while all others are stopped."""
    post(server.url, server.files, server.media_type, folder, connections, 1)
    before_s = server.cpu_s()
    figures = post(server.url, server.files, server.media_type, folder, connections, seconds)
    spent_s = server.cpu_s() - before_s
    return Turn(figures, 1000 * spent_s / (figures.rate_per_s * seconds))


def half_load(server: Server, folder: Path, most_per_s: float, alone: Figures) -> Figures:
    """Answer times of four clients that together ask for half of what the server can do."""
    pause_ms = round(1000 * _HALF_LOAD_CLIENTS / (most_per_s / 2) - alone.p50_ms)
    clients = _HALF_LOAD_CLIENTS
    post(server.url, server.files, server.media_type, folder, clients, 1)
    return post(server.url, server.files, server.media_type, folder, clients, 12, pause_ms)


def one_round(servers: Sequence[Server], folder: Path, seconds: float, results: Results) -> None:
    """Every contender at every number of connections, one after another."""
    for connections in CONNECTIONS:
        for server in servers:
            server.thaw()
            turn = one_turn(server, folder, connections, seconds)
            server.freeze()
            results.turns.setdefault((server.name, connections), []).append(turn)
            print(f"{line(server.name, connections, turn)}", flush=True)
    for server in servers:
        most_per_s = max(rate(results.turns[server.name, c][-1]) for c in CONNECTIONS)
        alone = results.turns[server.name, 1][-1].figures
        server.thaw()
        results.half.setdefault(server.name, []).append(
            half_load(server, folder, most_per_s, alone)
        )
        server.freeze()


def line(name: str, connections: int, turn: Turn) -> str:
    """A turn in words."""
    found = turn.figures
    return (
        f"{name:<12} {connections:>3} connections  {found.rate_per_s:>6.1f} requests/s  "
        f"p50 {found.p50_ms:>6.1f} ms  p99 {found.p99_ms:>6.1f} ms  "
        f"{turn.cpu_ms:>5.1f} ms of processor time  {found.errors} errors"
    )


def show(results: Results, names: Sequence[str]) -> None:
    """Medians of the rounds; ratios are taken within each round first."""
    limit = statistics.median(results.limits)
    print(f"\nmedians of {len(results.limits)} rounds; ceiling {limit:.1f} images/s")
    for (name, connections), turns in results.turns.items():
        middle = Turn(
            Figures(
                results.median(name, connections, rate),
                results.median(name, connections, lambda turn: turn.figures.p50_ms),
                results.median(name, connections, p99),
                errors=sum(turn.figures.errors for turn in turns),
            ),
            results.median(name, connections, lambda turn: turn.cpu_ms),
        )
        share = middle.figures.rate_per_s / limit
        print(f"{line(name, connections, middle)}  {share:.2f} of the ceiling")
    for name in names:
        if name == OURS or OURS not in names:
            continue
        for connections in CONNECTIONS:
            rates = ratios(results, name, connections, rate)
            times = ratios(results, name, connections, p99)
            print(f"ours / {name}, {connections} connections: requests/s {rates}, p99 {times}")
    for name in names:
        halves = statistics.median(found.p99_ms for found in results.half[name])
        alone = results.median(name, 1, lambda turn: turn.figures.p50_ms)
        print(f"{name} at half of its rate: p99 {halves:.0f} ms = {halves / alone:.2f} x p50 alone")


def ratios(results: Results, name: str, connections: int, of: Callable[[Turn], float]) -> str:
    """Ours over a peer's, round by round: median, and the least and the greatest."""
    pairs = zip(results.turns[OURS, connections], results.turns[name, connections], strict=True)
    found = [of(ours) / of(theirs) for ours, theirs in pairs]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    # Servers that are stopped in their tracks would outlive a bench that is ended.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of PNG files")
    parser.add_argument("--peers", help="python of the peers' environment")
    parser.add_argument("--bundle", help="with an openvino-int8 engine; by default one is made")
    parser.add_argument("--seconds", type=float, default=5, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="name of one contender")
    parser.add_argument("--flags", default="", help="of fetal serve, in one word")
    args = parser.parse_args()
    images = sorted(args.images.resolve().glob("*.png"))
    results = Results()
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name, ExitStack() as stack:
        folder = Path(name)
        bundle = args.bundle or write_bundle(folder, images)
        servers = []
        for contender in contenders(bundle, args.peers, args.flags.split()):
            if args.only in (None, contender.name):
                servers.append(stack.enter_context(running(contender, bundle, images, folder)))
                servers[-1].freeze()
        for number in range(args.rounds):
            python = args.peers or sys.executable
            results.limits.append(ceiling(args.images.resolve(), bundle, python, 4))
            print(f"round {number + 1}: ceiling {results.limits[-1]:.1f} images/s", flush=True)
            turned = servers[number % len(servers) :] + servers[: number % len(servers)]
            one_round(turned, folder, args.seconds, results)
    show(results, [server.name for server in servers])


if __name__ == "__main__":
    main()
