"""Searches that cannot run as written are refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from fetal_core.errors import ConfigError
from fetal_core.search_check import check_search
from search_samples import RECIPE, search


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ({}, {}, "search.space: empty"),
        ({"optm.lr": {"choice": [1]}}, {}, "did you mean 'optim'"),
        ({"optim.rate": {"choice": [1]}}, {}, "unknown key"),
        ({"optim.lr": {"uniform": [-1, 1]}}, {}, "greater than 0"),
        ({"optim.name": {"choice": ["sgd", "rmsprop"]}}, {}, "rmsprop"),
        ({"split.test": {"choice": [0.1]}}, {}, "belongs to the prepared cohort"),
        ({"evaluate.resamples": {"choice": [100]}}, {}, "belongs to the prepared cohort"),
        ({"model.weights": {"choice": ["none", "own.pth"]}}, {}, "own.pth: .*; give /.*/own.pth"),
        ({"optim.lr": {"uniform": [0.1, 1]}}, {"algorithm": "grid"}, "needs a list of values"),
        (
            {"optim.momentum": {"choice": [0.5], "when": {"optim.name": "sgd"}}},
            {},
            "optim.name is not searched over",
        ),
        (
            {
                "optim.name": {"choice": ["sgd", "adam"]},
                "optim.momentum": {"choice": [0.5], "when": {"optim.name": "sdg"}},
            },
            {},
            "'sdg' is not among its values",
        ),
        ({"optim.lr": {"choice": [0.1]}}, {"grace_epochs": 10}, "nothing to stop"),
        (
            {
                "optim.lr": {"uniform": [0.1, 0.2]},
                "optim.momentum": {"choice": [0.5], "when": {"optim.lr": 0.1}},
            },
            {},
            "optim.lr is a range",
        ),
        (
            {
                "optim.lr": {"choice": [0.1], "when": {"optim.momentum": 0.5}},
                "optim.momentum": {"choice": [0.5], "when": {"optim.lr": 0.1}},
            },
            {},
            "wait for each other",
        ),
    ],
)
def test_a_search_that_cannot_run_is_refused(
    space: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_search(search(space, **settings), RECIPE)


def test_all_faults_are_told_together() -> None:
    space = {"optm.lr": {"choice": [1]}, "optim.lr": {"uniform": [-1, 1]}}
    with pytest.raises(ConfigError) as caught:
        check_search(search(space), RECIPE)
    assert "optm" in str(caught.value)
    assert "greater than 0" in str(caught.value)


def test_conditions_may_rest_on_conditions_and_on_an_arms_settings() -> None:
    space = {
        "train.mode": {"choice": ["probe", "finetune"]},
        "optim.name": {"choice": ["lbfgs"], "when": {"train.mode": "probe"}},
        "optim.weight_decay": {"choice": [0.1], "when": {"optim.name": "lbfgs"}},
    }
    check_search(search(space), RECIPE)
    arm = {
        "settings": {"train.mode": "probe", "optim.name": "lbfgs"},
        "space": {"optim.weight_decay": {"choice": [0.1], "when": {"optim.name": "lbfgs"}}},
    }
    check_search(search({}, algorithm="grid", scheduler="none", arms={"probe": arm}), RECIPE)


def test_an_arm_cannot_fix_what_is_searched() -> None:
    arms = {"fast": {"settings": {"optim.lr": 0.01}}}
    space = {"optim.lr": {"grid": [0.1, 0.2]}}
    config = search(space, algorithm="grid", scheduler="none", arms=arms)
    with pytest.raises(ConfigError, match="is searched over as well"):
        check_search(config, RECIPE)
