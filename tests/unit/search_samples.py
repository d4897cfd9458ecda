"""A search space with a condition, shared by the tests of searches."""

from __future__ import annotations

from typing import Any

from fetal_core.config import parse
from fetal_core.recipe import Recipe
from fetal_core.search import (
    SearchConfig,
)

RECIPE = Recipe()


SPACE: dict[str, Any] = {
    "optim.momentum": {"uniform": [0.5, 0.95], "when": {"optim.name": "sgd"}},
    "optim.name": {"choice": ["sgd", "adam"]},
    "optim.lr": {"loguniform": [1e-4, 1e-1]},
    "train.batch_size": {"int": [8, 64]},
}


def search(space: dict[str, Any] = SPACE, **settings: Any) -> SearchConfig:
    return parse(SearchConfig, {"space": space, **settings}, "test")
