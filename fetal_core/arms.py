"""The trials of a sweep's arms: groups that differ in the seed alone, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from fetal_core.search import Assignment, Parameter, SearchConfig, Value
from fetal_core.trials import Trial

SEED = "train.seed"


def choose(trials: Sequence[Trial], search: SearchConfig) -> dict[str, list[Trial]]:
    """Of every arm the trials, one a seed, of the best settings by mean ``search.metric``.

    Only settings count whose seeds have all finished; of equal ones the earlier are taken. An arm
    without such settings is missing.
    """
    complete = {arm: complete_groups(trials, search, arm) for arm in search.arms}
    return {
        arm: max(found, key=lambda group: mean_score(group, search.metric))
        for arm, found in complete.items()
        if found
    }


def groups(trials: Sequence[Trial], arm: str) -> list[list[Trial]]:
    """Trials of an arm that differ in the seed alone, in the order of their numbers."""
    found: dict[frozenset[tuple[str, Value]], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.arm == arm:
            found.setdefault(frozenset(without_seed(trial).items()), []).append(trial)
    return list(found.values())


def complete_groups(trials: Sequence[Trial], search: SearchConfig, arm: str) -> list[list[Trial]]:
    """Groups all of whose seeds have finished."""
    searched = _space(search, arm).get(SEED)
    wanted = set(searched.values or ()) if searched else set()
    return [
        group
        for group in groups(trials, arm)
        if all(trial.status == "finished" and trial.best for trial in group)
        and (None in (seeds := {trial.assignment.get(SEED) for trial in group}) or seeds >= wanted)
    ]


def mean_score(group: Sequence[Trial], name: str) -> float:
    """Mean of a number at the best epochs of finished trials."""
    return fmean(score for trial in group if (score := trial.score(name)) is not None)


def without_seed(trial: Trial) -> Assignment:
    """A trial's settings but the seed."""
    return {name: value for name, value in trial.assignment.items() if name != SEED}


def edges(search: SearchConfig, arm: str, settings: Assignment) -> tuple[str, ...]:
    """Names of settings that are the least or the greatest of several numbers that were tried."""
    space = _space(search, arm)
    return tuple(name for name, value in settings.items() if _at_edge(space.get(name), value))


def _space(search: SearchConfig, arm: str) -> dict[str, Parameter]:
    return {**search.space, **search.arms[arm].space}


def _at_edge(parameter: Parameter | None, value: Value) -> bool:
    values = [v for v in (parameter.values or () if parameter else ()) if type(v) in (int, float)]
    return len(values) > 1 and value in (min(values), max(values))
