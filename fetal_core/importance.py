"""The settings that trials used, and how much each of them matters to the score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fetal_core.recipe import Recipe
from fetal_core.search import Parameter, SearchConfig, Value, active, ordered
from fetal_core.trials import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ARM = "arm"
LEAST_TRIALS = 4
_SAME_SCORE = 1e-9
_ROUNDING = 1e-9

Settings = dict[str, Value | None]


def importances(trials: Sequence[Trial], search: SearchConfig, recipe: Recipe) -> dict[str, float]:
    """Share in [0, 1] of the score's variance that each parameter explains alone, largest first.

    Functional analysis of variance over a random forest (Hutter et al. 2014, by Optuna), with the
    seed of the search; a ``loguniform`` parameter enters by its logarithm. The variance is that
    over the searched values, so a trial with a value outside them, as the recipe as it stands may
    have, is left out. So are failed trials. A stopped trial counts with its score so far.

    A parameter with conditions is rated among the trials that use it. One that these trials give
    a single value, or that fewer than four of them or only equal scores speak of, is absent.
    """
    parameters = searched(search)
    rows: list[tuple[Settings, float]] = []
    for trial in trials:
        score, used = trial.score(search.metric), settings(trial, search, recipe)
        inside = all(_inside(parameters[name], value) for name, value in used.items())
        if score is not None and trial.status != "failed" and inside:
            rows.append((used, score))
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in parameters:
        users = tuple(index for index, (used, _) in enumerate(rows) if name in used)
        groups.setdefault(users, []).append(name)
    found: dict[str, float] = {}
    for users, names in groups.items():
        rated = _rate([rows[index] for index in users], parameters, search.seed)
        found |= {name: rated[name] for name in names if name in rated}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def searched(search: SearchConfig) -> dict[str, Parameter]:
    """Every searched parameter by dotted name, with the values of all arms, and ``arm`` itself."""
    if not search.arms:
        return dict(search.space)
    values: dict[str, list[Value]] = {ARM: list(search.arms)}
    for space in (search.space, *(arm.space for arm in search.arms.values())):
        for name, parameter in space.items():
            values.setdefault(name, []).extend(parameter.values or ())
    return {name: Parameter(choice=tuple(dict.fromkeys(all_))) for name, all_ in values.items()}


def settings(trial: Trial, search: SearchConfig, recipe: Recipe) -> Settings:
    """The searched parameters that a trial used, with its values or else the recipe's.

    Those that a condition or the trial's arm leaves out are absent; None is a setting of the
    recipe that is off.
    """
    used: Settings = {} if trial.arm is None else {ARM: trial.arm}
    arm = search.arms.get(trial.arm or "")
    space = {**search.space, **(arm.space if arm else {})}
    plain = recipe.model_dump(mode="json")
    for name in ordered(space):
        values = {other: value for other, value in used.items() if value is not None}
        if active(space, values, name):
            known = name in trial.assignment
            used[name] = trial.assignment[name] if known else _at(plain, name)
    return used


def value_text(value: Value | None) -> str:
    """A setting in the way of TOML, with four digits; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def default_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the recipe as it stands, unless it failed."""
    plain = (trial for trial in trials if not trial.assignment and trial.status != "failed")
    return next(plain, None)


def distribution(parameter: Parameter) -> BaseDistribution:
    """The range of a parameter as Optuna's."""
    # Importing Optuna moves the global random state: only where it is needed.
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    if parameter.whole is not None:
        return IntDistribution(*parameter.whole)
    low, high = (float(bound) for bound in parameter.extremes)
    return FloatDistribution(low, high, log=parameter.loguniform is not None)


def _at(values: Mapping[str, Any], name: str) -> Value | None:
    found: Any = values
    for key in name.split("."):
        found = found[key]
    return found if isinstance(found, bool | int | float | str) else None


def _inside(parameter: Parameter, value: Value | None) -> bool:
    if parameter.values is not None:
        return value in parameter.values
    low, high = parameter.extremes
    slack = _ROUNDING * abs(float(high))
    return isinstance(value, int | float) and float(low) - slack <= value <= float(high) + slack


def _rate(
    rows: Sequence[tuple[Settings, float]], parameters: Mapping[str, Parameter], seed: int
) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator

    scores = [score for _, score in rows]
    if len(rows) < LEAST_TRIALS or max(scores) - min(scores) < _SAME_SCORE:
        return {}
    varied = {
        name: parameter
        for name, parameter in parameters.items()
        if all(name in used for used, _ in rows) and len({used[name] for used, _ in rows}) > 1
    }
    if not varied:
        return {}
    distributions = {
        name: _without_log(distribution(parameter)) for name, parameter in varied.items()
    }
    with _quiet():
        study = optuna.create_study(direction="maximize")
    for used, score in rows:
        values = {name: _coordinate(varied[name], used[name]) for name in varied}
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=distributions, value=score)
        )
    rated = FanovaImportanceEvaluator(seed=seed).evaluate(study, params=list(varied))
    return {name: float(share) for name, share in rated.items()}


def _without_log(found: BaseDistribution) -> BaseDistribution:
    """The evaluator weighs plain ranges evenly, so that a range of logarithms has to be one."""
    from optuna.distributions import FloatDistribution

    if isinstance(found, FloatDistribution) and found.log:
        return FloatDistribution(math.log(found.low), math.log(found.high))
    return found


def _coordinate(parameter: Parameter, value: Value | None) -> Value | None:
    if parameter.values is not None or value is None:
        return value
    low, high = parameter.extremes
    clipped = min(max(value, low), high)
    return math.log(float(clipped)) if parameter.loguniform is not None else clipped


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing a study; its level of logging is as before afterwards."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
