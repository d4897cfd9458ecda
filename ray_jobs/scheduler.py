"""When Ray Tune stops a trial early."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from fetal_core.recipe import Recipe
from fetal_core.search import SearchConfig, longest
from fetal_core.trials import Trial


def make_scheduler(search: SearchConfig, recipe: Recipe, known: Sequence[Trial]) -> TrialScheduler:
    """The scheduler that the search names, having heard of all epochs of trials that have ended."""
    if search.scheduler == "none" or recipe.train.mode == "probe":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        # Nobody is stopped at the last epoch.
        max_t=longest(search, recipe) - 1,
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction_factor,
        stop_last_trials=False,
    )
    controller: Any = None
    for trial in known:
        if trial.status != "unfinished":
            # The scheduler looks at nothing but the id.
            stand_in: Any = SimpleNamespace(trial_id=f"earlier {trial.number}")
            scheduler.on_trial_add(controller, stand_in)
            for record in trial.history:
                result = {"epoch": record["epoch"], "score": record[search.metric]}
                scheduler.on_trial_result(controller, stand_in, result)
    return scheduler
