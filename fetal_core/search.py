"""Search spaces of a sweep: which settings to try."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from fetal_core.config import Config, digest, merge, parse
from fetal_core.errors import ConfigError
from fetal_core.recipe import Recipe

Value = bool | int | float | str
Assignment = dict[str, Value]

_KINDS = ("choice", "grid", "uniform", "loguniform", "int")
_DRAWS = 200


class Parameter(Config):
    """One setting of the search, with exactly one kind of range.

    Attributes:
        choice: values to draw from; all are tried by a ``grid``.
        grid: the same, under the name that a grid suggests.
        uniform: bounds of a real number.
        loguniform: positive bounds of a real number that is uniform in its logarithm.
        whole: (``int`` in TOML) bounds of a whole number, both included.
        when: values of other parameters without which this one keeps the recipe's value.
    """

    model_config = ConfigDict(populate_by_name=True)

    choice: tuple[Value, ...] | None = Field(default=None, min_length=1)
    grid: tuple[Value, ...] | None = Field(default=None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    whole: tuple[int, int] | None = Field(default=None, alias="int")
    when: dict[str, Value] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Parameter:
        ranges = [self.uniform, self.loguniform, self.whole]
        if sum(kind is not None for kind in (self.choice, self.grid, *ranges)) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}")
        for bounds in ranges:
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError("the lower bound must be below the upper one")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("the bounds of loguniform must be positive")
        return self

    @property
    def values(self) -> tuple[Value, ...] | None:
        """The values of a finite parameter, None for a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def extremes(self) -> tuple[Value, ...]:
        """All values, or both bounds."""
        return self.values or self.uniform or self.loguniform or self.whole or ()

    def draw(self, generator: np.random.Generator) -> Value:
        """A random value."""
        if self.values is not None:
            return self.values[int(generator.integers(len(self.values)))]
        if self.whole is not None:
            return int(generator.integers(self.whole[0], self.whole[1] + 1))
        if self.loguniform is not None:
            low, high = (math.log(bound) for bound in self.loguniform)
            return math.exp(generator.uniform(low, high))
        low, high = self.uniform or (0.0, 1.0)
        return float(generator.uniform(low, high))


class Arm(Config):
    """One side of a comparison: its own settings, and parameters that are searched within it.

    Attributes:
        settings: values by dotted name.
        space: parameters by dotted name, beside those of the whole search.
    """

    settings: dict[str, Value] = Field(default_factory=dict)
    space: dict[str, Parameter] = Field(default_factory=dict)


class SearchConfig(Config):
    """A sweep.

    Attributes:
        algorithm: ``random``, ``grid`` (every combination), or ``tpe`` (tree-structured Parzen
            estimators, Bergstra et al. 2011, by Optuna).
        trials: number of configurations; a grid has as many as its combinations.
        seed: of the configurations.
        include_default: whether the first trial is the recipe as it stands.
        metric: the validation number, at a trial's best epoch, that trials are compared by.
        scheduler: ``asha`` (Li et al. 2020) stops the worst trials early, ``none`` lets all end.
            It has nothing to do in ``probe`` mode, whose trials report once.
        grace_epochs: epochs that every trial may run.
        reduction_factor: of the trials that reach a rung, one in this many goes on.
        keep_checkpoints: trials whose checkpoints stay, the best ones.
        space: parameters by dotted name, such as ``optim.lr``.
        arms: sides of a comparison by name; each is searched by the grid.
    """

    algorithm: Literal["random", "grid", "tpe"] = "random"
    trials: int = Field(default=12, ge=1)
    seed: int = Field(default=0, ge=0)
    include_default: bool = True
    metric: Literal["val_macro_f1", "val_accuracy"] = "val_macro_f1"
    scheduler: Literal["asha", "none"] = "asha"
    grace_epochs: int = Field(default=2, ge=1)
    reduction_factor: int = Field(default=3, ge=2)
    keep_checkpoints: int = Field(default=3, ge=1)
    space: dict[str, Parameter] = Field(default_factory=dict)
    arms: dict[str, Arm] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_arms(self) -> SearchConfig:
        if self.arms and self.algorithm != "grid":
            raise ValueError("arms are compared over the same grid: set algorithm = 'grid'")
        if self.arms and self.scheduler != "none":
            raise ValueError("arms are compared at their ends: set scheduler = 'none'")
        return self


@dataclass(frozen=True)
class Candidate:
    """Settings of one trial.

    Attributes:
        assignment: values by dotted name, where they are not the sweep's.
        recipe: all settings.
        arm: name of its arm, None in a sweep without arms.
    """

    assignment: Assignment
    recipe: Recipe
    arm: str | None = None


def assign(recipe: Recipe, assignment: Mapping[str, Value]) -> Recipe:
    """The recipe with dotted names replaced.

    Raises:
        ConfigError: the result is not valid.
    """
    values: dict[str, Any] = recipe.model_dump(mode="json")
    for name, value in assignment.items():
        nested: Any = value
        for key in reversed(name.split(".")):
            nested = {key: nested}
        values = merge(values, nested)
    shown = ", ".join(f"{name} = {value!r}" for name, value in assignment.items())
    return parse(Recipe, values, f"with {shown or 'no change'}")


def active(space: Mapping[str, Parameter], assignment: Mapping[str, Value], name: str) -> bool:
    """Whether the conditions of a parameter hold; one on an inactive parameter does not."""
    return all(assignment.get(other) == value for other, value in space[name].when.items())


def ordered(space: Mapping[str, Parameter]) -> list[str]:
    """Names, each after those that its conditions speak of.

    Raises:
        ConfigError: conditions on themselves in a circle.
    """
    names: list[str] = []
    while len(names) < len(space):
        waiting = [name for name in space if name not in names]
        ready = [name for name in waiting if not set(space[name].when) & set(waiting)]
        if not ready:
            circle = ", ".join(sorted(waiting))
            raise ConfigError(f"search.space: the conditions of {circle} wait for each other.")
        names += ready
    return names


def candidates(search: SearchConfig, recipe: Recipe) -> list[Candidate]:
    """All trials of a ``random`` or ``grid`` search: a function of the search and the recipe alone.

    Settings that amount to the same are tried once.

    Raises:
        ConfigError: a combination of values is not valid; all of them.
    """
    found: dict[str, Candidate] = {}
    faults: list[str] = []
    wanted = search.trials if search.algorithm == "random" else None
    for assignment, arm in _stream(search):
        try:
            candidate = Candidate(assignment, assign(recipe, assignment), arm)
        except ConfigError as error:
            faults.append(str(error))
            continue
        found.setdefault(digest([arm, candidate.recipe.digest()]), candidate)
        if len(found) == wanted:
            break
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return list(found.values())


def _stream(search: SearchConfig) -> Iterator[tuple[Assignment, str | None]]:
    if search.include_default and not search.arms:
        yield {}, None
    if search.algorithm == "random":
        for draw in range(search.trials * _DRAWS):
            yield _drawn(search.space, np.random.default_rng([search.seed, draw])), None
    elif not search.arms:
        yield from ((assignment, None) for assignment in _combinations(search.space, {}))
    for name, arm in search.arms.items():
        space = {**search.space, **arm.space}
        for assignment in _combinations(space, arm.settings):
            yield assignment, name


def _drawn(space: Mapping[str, Parameter], generator: np.random.Generator) -> Assignment:
    drawn: Assignment = {}
    for name in ordered(space):
        # Drawn in any case, so that a condition does not shift the draws behind it.
        value = space[name].draw(generator)
        if active(space, drawn, name):
            drawn[name] = value
    return drawn


def _combinations(space: Mapping[str, Parameter], start: Assignment) -> list[Assignment]:
    found: list[Assignment] = [dict(start)]
    for name in ordered(space):
        values = space[name].values or ()
        found = list(
            itertools.chain.from_iterable(
                [one | {name: value} for value in values] if active(space, one, name) else [one]
                for one in found
            )
        )
    return found


def longest(search: SearchConfig, recipe: Recipe) -> int:
    """Epochs of the longest possible trial."""
    searched = search.space.get("train.epochs")
    values = searched.extremes if searched is not None else ()
    return max([recipe.train.epochs, *(int(value) for value in values)])
