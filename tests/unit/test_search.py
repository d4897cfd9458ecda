"""Search spaces: draws, grids, arms, and what a trial's settings are."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetal_core.config import parse
from fetal_core.errors import ConfigError
from fetal_core.search import (
    Parameter,
    SearchConfig,
    assign,
    candidates,
    ordered,
)
from search_samples import RECIPE, SPACE, search


def assignments(config: SearchConfig) -> list[dict[str, Any]]:
    return [candidate.assignment for candidate in candidates(config, RECIPE)]


def test_values_lie_in_their_ranges_and_conditions_hold() -> None:
    drawn = assignments(search(trials=200, include_default=False))
    assert len(drawn) == 200
    for one in drawn:
        assert 1e-4 <= one["optim.lr"] <= 1e-1
        assert isinstance(one["train.batch_size"], int)
        assert 8 <= one["train.batch_size"] <= 64
        assert ("optim.momentum" in one) == (one["optim.name"] == "sgd")
    sizes = {one["train.batch_size"] for one in drawn}
    assert {min(sizes), max(sizes)} <= {8, 9, 10, 62, 63, 64}, "both bounds belong to the range"
    decades = Counter(math.floor(math.log10(one["optim.lr"])) for one in drawn)
    assert all(40 < decades[decade] < 95 for decade in (-4, -3, -2)), decades


def test_the_same_search_gives_the_same_trials_and_more_trials_begin_with_them() -> None:
    first = candidates(search(trials=8, seed=3), RECIPE)
    assert candidates(search(trials=8, seed=3), RECIPE) == first
    assert candidates(search(trials=20, seed=3), RECIPE)[:8] == first
    assert candidates(search(trials=8, seed=4), RECIPE)[1:] != first[1:]
    assert (first[0].assignment, first[0].recipe) == ({}, RECIPE)


def test_an_inactive_parameter_does_not_shift_the_other_draws() -> None:
    without = {name: value for name, value in SPACE.items() if name != "optim.momentum"}
    plain = [one["optim.lr"] for one in assignments(search(without, include_default=False))]
    again = [one["optim.lr"] for one in assignments(search(without, include_default=False))]
    assert plain == again
    conditional = assignments(search(include_default=False))
    sgd = [one for one in conditional if one["optim.name"] == "sgd"]
    assert sgd
    assert len(conditional) == len(plain)


def test_a_grid_is_every_combination_once() -> None:
    space = {
        "optim.name": {"grid": ["sgd", "adam"]},
        "optim.momentum": {"grid": [0.5, 0.8], "when": {"optim.name": "sgd"}},
        "optim.lr": {"choice": [0.01, 0.1, 0.1]},
    }
    found = assignments(search(space, algorithm="grid", include_default=False))
    expected = [("sgd", m, lr) for m in (0.5, 0.8) for lr in (0.01, 0.1)]
    expected += [("adam", None, lr) for lr in (0.01, 0.1)]
    shown = [(one["optim.name"], one.get("optim.momentum"), one["optim.lr"]) for one in found]
    assert sorted(shown, key=str) == sorted(expected, key=str)


def test_the_default_is_not_tried_twice() -> None:
    space = {"optim.lr": {"grid": [RECIPE.optim.lr, 0.1]}}
    assert assignments(search(space, algorithm="grid")) == [{}, {"optim.lr": 0.1}]


def test_a_small_space_ends_before_the_trials_asked_for() -> None:
    space = {"optim.name": {"choice": ["sgd", "adam"]}}
    assert len(assignments(search(space, trials=9))) == 2


def test_arms_have_their_own_settings_and_ranges() -> None:
    config = search(
        {"train.seed": {"grid": [0, 1]}},
        algorithm="grid",
        scheduler="none",
        arms={
            "sgd": {"settings": {"optim.name": "sgd"}, "space": {"optim.lr": {"grid": [0.1]}}},
            "adam": {
                "settings": {"optim.name": "adam"},
                "space": {"optim.lr": {"grid": [0.001, 0.01]}},
            },
        },
    )
    found = candidates(config, RECIPE)
    assert Counter(candidate.arm for candidate in found) == {"sgd": 2, "adam": 4}
    for candidate in found:
        assert candidate.assignment["optim.name"] == candidate.arm
    assert {c.assignment["optim.lr"] for c in found if c.arm == "sgd"} == {0.1}


def test_assign_changes_what_is_named_and_nothing_else() -> None:
    changed = assign(RECIPE, {"optim.lr": 0.5, "train.epochs": 3})
    assert (changed.optim.lr, changed.train.epochs) == (0.5, 3)
    before, after = RECIPE.model_dump(), changed.model_dump()
    before["optim"]["lr"], before["train"]["epochs"] = 0.5, 3
    assert after == before
    with pytest.raises(ConfigError, match=r"optim\.lr: .*greater than 0"):
        assign(RECIPE, {"optim.lr": -1.0})


@pytest.mark.parametrize(
    "parameter",
    [
        {},
        {"choice": [1], "grid": [1]},
        {"uniform": [1, 0]},
        {"loguniform": [0, 1]},
        {"int": [3, 3]},
        {"choice": []},
        {"uniforn": [0, 1]},
    ],
)
def test_a_parameter_needs_one_sound_range(parameter: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        search({"optim.lr": parameter})


def test_an_unknown_key_of_a_parameter_is_told_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"space\.optim\.lr\.uniforn: unknown key; did you mean"):
        search({"optim.lr": {"uniforn": [0, 1]}})


def test_invalid_combinations_are_found_before_the_start() -> None:
    space = {
        "optim.nesterov": {"choice": [True, False]},
        "optim.momentum": {"choice": [0.0, 0.9]},
    }
    with pytest.raises(ConfigError, match="nesterov needs a momentum"):
        candidates(search(space, algorithm="grid"), RECIPE)


def test_conditions_in_a_circle_are_refused() -> None:
    space = search(
        {
            "optim.lr": {"choice": [0.1], "when": {"optim.momentum": 0.5}},
            "optim.momentum": {"choice": [0.5], "when": {"optim.lr": 0.1}},
        }
    ).space
    with pytest.raises(ConfigError, match="wait for each other"):
        ordered(space)


@given(
    low=st.floats(1e-6, 1.0),
    ratio=st.floats(1.01, 1e6),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["uniform", "loguniform"]),
)
def test_real_draws_stay_within_their_bounds(
    low: float, ratio: float, seed: int, kind: str
) -> None:
    parameter = parse(Parameter, {kind: [low, low * ratio]}, "test")
    value = parameter.draw(np.random.default_rng(seed))
    assert isinstance(value, float)
    assert low * (1 - 1e-9) <= value <= low * ratio * (1 + 1e-9)
