"""Importance of settings: against scores of which it is known what they depend on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fetal_core.config import parse
from fetal_core.importance import distribution, importances, searched, settings
from fetal_core.recipe import Recipe
from fetal_core.search import Parameter, SearchConfig, candidates
from fetal_core.trials import Trial
from sweep_trials import made_trial

Score = Callable[[dict[str, Any]], float]

RECIPE = Recipe()
SPACE = {
    "optim.lr": {"loguniform": [1e-5, 1e-1]},
    "train.batch_size": {"choice": [8, 16, 32]},
    "loss.label_smoothing": {"uniform": [0.0, 0.2]},
}
CONDITIONAL = {
    "optim.name": {"choice": ["sgd", "adamw"]},
    "optim.momentum": {"uniform": [0.5, 0.95], "when": {"optim.name": "sgd"}},
    "loss.label_smoothing": {"uniform": [0.0, 0.2]},
}


def search_of(space: object, **changes: object) -> SearchConfig:
    values = {"trials": 24, "include_default": False, "space": space} | changes
    return parse(SearchConfig, values, "test")


def trials_of(search: SearchConfig, score: Score) -> list[Trial]:
    return [
        made_trial(number, one.assignment, [score(one.assignment)], arm=one.arm)
        for number, one in enumerate(candidates(search, RECIPE))
    ]


def rated(search: SearchConfig, score: Score) -> dict[str, float]:
    return importances(trials_of(search, score), search, RECIPE)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("optim.lr", lambda a: np.log10(a["optim.lr"]) / 10 + 0.6),
        ("train.batch_size", lambda a: 0.5 + a["train.batch_size"] / 100),
        ("loss.label_smoothing", lambda a: 0.5 + a["loss.label_smoothing"]),
    ],
)
def test_the_setting_that_makes_the_score_comes_first(name: str, score: Score) -> None:
    found = rated(search_of(SPACE), score)
    assert next(iter(found)) == name
    assert found[name] > 0.7
    assert set(found) == set(SPACE)
    assert all(share < 0.15 for other, share in found.items() if other != name)


def test_two_settings_that_add_up_share_the_variance_by_their_effects() -> None:
    space = {"train.batch_size": {"choice": [8, 16]}, "optim.name": {"choice": ["sgd", "adamw"]}}
    search = search_of(space, algorithm="grid")
    # Effects of 3 and 1: variances of 9 and 1.
    found = rated(
        search, lambda a: 0.3 * (a["train.batch_size"] == 8) + 0.1 * (a["optim.name"] == "sgd")
    )
    assert list(found) == ["train.batch_size", "optim.name"]
    assert 0.7 < found["train.batch_size"] < 1
    assert 0 < found["optim.name"] < 0.3


def test_low_decades_of_a_logarithmic_range_count_as_much_as_high_ones() -> None:
    # A thousandth of the plain range, but a quarter of the decades, is below 1e-4.
    found = rated(
        search_of(SPACE),
        lambda a: 0.6 * (a["optim.lr"] > 1e-4) + 0.2 * (a["train.batch_size"] == 8),
    )
    assert found["optim.lr"] > 0.7
    assert 0 < found["train.batch_size"] < 0.3


def test_a_conditional_setting_is_rated_where_it_is_used() -> None:
    search = search_of(CONDITIONAL)
    found = rated(search, lambda a: a.get("optim.momentum", 0.99))
    assert found["optim.momentum"] > 0.8
    assert found["optim.name"] > found["loss.label_smoothing"]


def test_a_conditional_setting_that_too_few_trials_use_is_absent() -> None:
    search = search_of(CONDITIONAL)
    trials = trials_of(search, lambda a: a["loss.label_smoothing"])
    users = [trial for trial in trials if "optim.momentum" in trial.assignment]
    kept = [trial for trial in trials if trial not in users[3:]]
    assert set(importances(kept, search, RECIPE)) == {"optim.name", "loss.label_smoothing"}


def test_the_default_recipe_has_its_own_values() -> None:
    used = settings(made_trial(0, {}, [0.5]), search_of(CONDITIONAL), RECIPE)
    assert used == {"optim.name": "sgd", "optim.momentum": 0.9, "loss.label_smoothing": 0.0}
    adam = settings(made_trial(0, {"optim.name": "adamw"}, [0.5]), search_of(CONDITIONAL), RECIPE)
    assert adam == {"optim.name": "adamw", "loss.label_smoothing": 0.0}


@pytest.mark.parametrize(
    "trial",
    [
        made_trial(99, {"optim.lr": 7.0}, [0.01]),
        made_trial(99, {"train.batch_size": 64}, [0.01]),
        made_trial(99, {"optim.lr": 1e-3}, [0.01], "failed"),
        made_trial(99, {"optim.lr": 1e-3}, [], "unfinished"),
    ],
)
def test_trials_outside_the_search_and_failed_ones_change_nothing(trial: Trial) -> None:
    search = search_of(SPACE)
    trials = trials_of(search, lambda a: a["train.batch_size"] / 100)
    assert importances([*trials, trial], search, RECIPE) == importances(trials, search, RECIPE)


def test_a_setting_that_is_off_in_the_recipe_leaves_that_trial_out() -> None:
    search = search_of({"optim.clip_norm": {"uniform": [0.5, 2.0]}, **SPACE})
    trials = trials_of(search, lambda a: a["optim.clip_norm"])
    found = importances([*trials, made_trial(99, {}, [0.9])], search, RECIPE)
    assert next(iter(found)) == "optim.clip_norm"


def test_too_few_or_equal_scores_and_single_values_are_not_rated() -> None:
    search = search_of(SPACE)
    trials = trials_of(search, lambda a: a["optim.lr"])
    assert importances([], search, RECIPE) == {}
    assert importances(trials[:3], search, RECIPE) == {}
    assert rated(search, lambda _: 0.7) == {}
    single = search_of({**SPACE, "optim.nesterov": {"choice": [True]}})
    assert "optim.nesterov" not in rated(single, lambda a: a["optim.lr"])


def test_arms_are_a_setting_and_their_own_ones_are_rated_within() -> None:
    arms = {
        "plain": {"settings": {"optim.name": "sgd"}},
        "smooth": {"space": {"loss.label_smoothing": {"grid": [0.05, 0.1, 0.2]}}},
    }
    search = search_of(
        {"train.seed": {"grid": [0, 1, 2, 3]}}, algorithm="grid", scheduler="none", arms=arms
    )
    assert searched(search)["arm"].values == ("plain", "smooth")
    trials = trials_of(search, lambda a: 0.5 + 2 * a.get("loss.label_smoothing", -0.2))
    found = importances(trials, search, RECIPE)
    assert next(iter(found)) == "loss.label_smoothing"
    assert found["arm"] > 0.7
    assert found["train.seed"] < 0.1


def test_the_same_sweep_gives_the_same_shares_in_silence(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    search = search_of(SPACE)
    level = optuna.logging.get_verbosity()
    with caplog.at_level(logging.INFO):
        first = rated(search, lambda a: a["optim.lr"])
        assert rated(search, lambda a: a["optim.lr"]) == first
    assert caplog.records == []
    assert "study" not in capfd.readouterr().err
    assert optuna.logging.get_verbosity() == level


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.integers(0, 9))
def test_shares_are_shares_whatever_the_scores(scores: list[float], seed: int) -> None:
    search = search_of(SPACE, trials=len(scores), seed=seed)
    queue = iter(scores)
    found = rated(search, lambda _: next(queue))
    assert all(0 <= share <= 1 + 1e-9 for share in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    ("parameter", "suggest"),
    [
        (Parameter(choice=(8, 16)), lambda t: t.suggest_categorical("x", (8, 16))),
        (Parameter(whole=(1, 5)), lambda t: t.suggest_int("x", 1, 5)),
        (Parameter(uniform=(0.1, 0.5)), lambda t: t.suggest_float("x", 0.1, 0.5)),
        (Parameter(loguniform=(1e-4, 0.1)), lambda t: t.suggest_float("x", 1e-4, 0.1, log=True)),
    ],
)
def test_distribution_is_what_optuna_draws_from(
    parameter: Parameter, suggest: Callable[[optuna.Trial], object]
) -> None:
    trial = optuna.create_study().ask()
    suggest(trial)
    assert trial.distributions == {"x": distribution(parameter)}
