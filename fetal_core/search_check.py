"""Whether a search can run as written, told before anything starts."""

from __future__ import annotations

from collections.abc import Mapping

from fetal_core import storage
from fetal_core.config import nearest
from fetal_core.errors import ConfigError
from fetal_core.fit_config import FitConfig
from fetal_core.model import NAMED_WEIGHTS
from fetal_core.recipe import Recipe
from fetal_core.search import Assignment, Parameter, SearchConfig, Value, assign, longest, ordered


def check_search(search: SearchConfig, recipe: Recipe) -> None:
    """Refuse a search that cannot run as written; every value is tried on the recipe.

    Raises:
        ConfigError: all faults together.
    """
    faults = _space_faults("search.space", search.space, {}, search, recipe) if search.space else []
    for name, arm in search.arms.items():
        where = f"search.arms.{name}"
        twice = sorted(set(arm.settings) & {*arm.space, *search.space})
        faults += [f"{where}.settings.{n}: is searched over as well; leave one out" for n in twice]
        for setting, value in arm.settings.items():
            others = {n: v for n, v in arm.settings.items() if n != setting}
            found = _value_faults(setting, value, others, recipe)
            faults += [f"{where}.settings.{setting}: {fault}" for fault in found]
        if arm.space:
            space = {**search.space, **arm.space}
            faults += _space_faults(f"{where}.space", space, arm.settings, search, recipe)
    if not search.space and not search.arms:
        faults.append(
            "search.space: empty; name what to search, such as "
            '[search.space."optim.lr"] loguniform = [1e-4, 1e-1]'
        )
    if search.scheduler == "asha" and recipe.train.mode != "probe":
        faults += _asha_faults(search, recipe)
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in dict.fromkeys(faults))
        raise ConfigError(f"the search is not valid:\n{lines}")


def _space_faults(
    where: str,
    space: Mapping[str, Parameter],
    fixed: Assignment,
    search: SearchConfig,
    recipe: Recipe,
) -> list[str]:
    faults = [
        f"{where}.{name}: {fault}"
        for name, parameter in space.items()
        for fault in _parameter_faults(parameter, space, fixed, search)
    ]
    if faults:
        return faults
    try:
        ordered(space)
    except ConfigError as error:
        return [str(error)]
    return [
        f"{where}.{name}: {fault}"
        for name, parameter in space.items()
        for value in parameter.extremes
        for fault in _value_faults(name, value, fixed | _needed(space, name), recipe)
    ]


def _parameter_faults(
    parameter: Parameter, space: Mapping[str, Parameter], fixed: Assignment, search: SearchConfig
) -> list[str]:
    faults = []
    if search.algorithm == "grid" and parameter.values is None:
        faults.append("a grid needs a list of values: choice or grid")
    for other, value in parameter.when.items():
        values: tuple[Value, ...] | None = ()
        if other in fixed:
            values = (fixed[other],)
        elif other in space:
            values = space[other].values
        if values is None:
            faults.append(f"when: {other} is a range; conditions are on lists of values")
        elif not values:
            faults.append(
                f"when: {other} is not searched over; searched: {', '.join([*space, *fixed])}"
            )
        elif value not in values:
            faults.append(f"when: {other} = {value!r} is not among its values")
    return faults


def _needed(space: Mapping[str, Parameter], name: str) -> Assignment:
    """The values that make a parameter active, conditions on conditions included."""
    found: Assignment = {}
    for other, value in space[name].when.items():
        found |= {other: value} | (_needed(space, other) if other in space else {})
    return found


def _value_faults(
    name: str, value: Value, conditions: Mapping[str, Value], recipe: Recipe
) -> list[str]:
    table = name.partition(".")[0]
    tables = list(FitConfig.model_fields)
    if table not in tables:
        if table in Recipe.model_fields:
            return [f"{table} belongs to the prepared cohort; searched can be {', '.join(tables)}"]
        return [f"no such setting{nearest(table, tables) or '.'} Known: {', '.join(tables)}"]
    if name == "model.weights" and value not in NAMED_WEIGHTS:
        whole = storage.absolute(str(value))
        if value != whole:
            return [f"{value}: trials have working directories of their own; give {whole}"]
    try:
        assign(recipe, {**conditions, name: value})
    except ConfigError as error:
        return [line.strip(" -") for line in str(error).splitlines()[1:]]
    return []


def _asha_faults(search: SearchConfig, recipe: Recipe) -> list[str]:
    epochs = longest(search, recipe)
    if search.grace_epochs < epochs:
        return []
    return [
        f"search.grace_epochs = {search.grace_epochs} with trials of {epochs} epochs: ASHA has "
        "nothing to stop. Lower it, train longer, or set search.scheduler = 'none'."
    ]
