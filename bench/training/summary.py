"""Medians, spreads and ratios within the rounds, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.results import table
from bench.training.contenders import (
    AT_BF16,
    CEILING,
    FP32,
    ORIGINAL,
    ORIGINAL_FP32,
    OURS,
    PROBE,
)

Turn = dict[str, Any]
SPEED, WITH_START, COST = "images_per_s", "images_per_s_with_start", "cpu_s_per_image"


@dataclass(frozen=True)
class Target:
    """A figure that ours is held to."""

    text: str
    limit: float
    at_least: bool
    found: Sequence[float]

    def row(self) -> list[str]:
        """What was found, and whether it will do."""
        if not self.found:
            return [self.text, self._limit, "not measured", ""]
        middle = statistics.median(self.found)
        met = middle >= self.limit if self.at_least else middle <= self.limit
        return [self.text, self._limit, spread(self.found, 3), "met" if met else "missed"]

    @property
    def _limit(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, the least and the greatest."""
    if not values:
        return ""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def of(turns: Sequence[Turn], name: str, key: str) -> dict[int, float]:
    """A contender's figure by round; turns that failed have none."""
    return {t["round"]: t[key] for t in turns if t["contender"] == name and key in t}


def ratios(turns: Sequence[Turn], name: str, other: str, key: str = SPEED) -> list[float]:
    """One contender's figure over another's, in each round that both ran in."""
    ours, theirs = of(turns, name, key), of(turns, other, key)
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys())]


def best_peer(turns: Sequence[Turn]) -> list[float]:
    """Ours over the fastest peer at bfloat16 of the same round."""
    ours = of(turns, OURS, SPEED)
    peers = [of(turns, name, SPEED) for name in AT_BF16]
    best = {n: max((peer[n] for peer in peers if n in peer), default=None) for n in sorted(ours)}
    return [ours[number] / theirs for number, theirs in best.items() if theirs]


def targets(turns: Sequence[Turn]) -> list[Target]:
    """What ours is held to, and what was found."""
    of_ours = [t for t in turns if t["contender"] == OURS]
    first = [t["first_step_s"] for t in of_ours if "first_step_s" in t]
    return [
        Target("of the ceiling, steady state", 0.95, True, ratios(turns, OURS, CEILING)),
        Target("over the plain float32 loop", 2.5, True, ratios(turns, OURS, FP32)),
        Target("over the best peer at bfloat16", 1.1, True, best_peer(turns)),
        Target("first step after the start, s", 20, False, first),
        Target(
            "probe: an epoch after the first, of the first",
            0.02,
            False,
            list(of(turns, PROBE, "later_epoch_share").values()),
        ),
    ]


def original_target(turns: Sequence[Turn]) -> Target:
    """Of the original recipe's shape."""
    found = ratios(turns, ORIGINAL, ORIGINAL_FP32)
    return Target("original shape, over plain float32", 2.2, True, found)


def speeds(turns: Sequence[Turn], limit: str) -> str:
    """A row for each contender; ratios are taken within each round."""
    rows = []
    for name in dict.fromkeys(t["contender"] for t in turns):
        if name == PROBE:
            continue
        rows.append([name, *_figures(turns, name, limit)])
        if with_start := list(of(turns, name, WITH_START).values()):
            wall = spread(list(of(turns, name, "wall_s").values()), 0)
            rows.append([f"{name}, whole command, {wall} s", spread(with_start), "", "", ""])
    header = ("", "images/s", f"over {limit}", "processor s an image", f"over {limit}'s")
    return table(header, rows)


def _figures(turns: Sequence[Turn], name: str, limit: str) -> list[str]:
    found = list(of(turns, name, SPEED).values())
    errors = [t["error"] for t in turns if t["contender"] == name and "error" in t]
    if not found:
        return [f"does not run: {errors[-1] if errors else 'no figures'}", "", "", ""]
    failed = f"; {len(errors)} turns failed: {errors[-1]}" if errors else ""
    costs = list(of(turns, name, COST).values())
    return [
        spread(found) + failed,
        spread(ratios(turns, name, limit)),
        spread(costs, 3),
        spread(ratios(turns, name, limit, COST)),
    ]


def versions(turns: Sequence[Turn]) -> str:
    """Of the peers' packages, and the formats that contenders computed in."""
    packages = {name: v for t in turns for name, v in t.get("versions", {}).items()}
    formats = {t["contender"]: t["precision"] for t in turns if "precision" in t}
    return (
        f"Peers: {', '.join(f'{name} {v}' for name, v in packages.items())}. "
        f"Computed in: {', '.join(f'{name}: {format}' for name, format in formats.items())}."
    )
