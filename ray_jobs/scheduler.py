"""When Ray Tune stops a trial early."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from fetal_core.recipe import Recipe
from fetal_core.search import SearchConfig, longest
from fetal_core.trials import Trial


class _Asha(ASHAScheduler):
    """ASHA that lets one trial end, and does not judge epochs that were judged before."""

    def __init__(self, spared: int | None, **settings: Any) -> None:
        super().__init__(**settings)
        self._spared = spared

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch."""
        decision = super().on_trial_result(tune_controller, trial, result)
        # The last word of a failed trial is no epoch.
        judged = "epoch" in result and not result["again"]
        spared = self._spared is not None and trial.config["number"] == self._spared
        return decision if judged and not spared else TrialScheduler.CONTINUE


def make_scheduler(search: SearchConfig, recipe: Recipe, known: Sequence[Trial]) -> TrialScheduler:
    """The scheduler that the search names, having heard of all epochs of trials that have ended."""
    if search.scheduler == "none" or recipe.train.mode == "probe":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = _Asha(
        spared=0 if search.include_default and not search.arms else None,
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
            # The scheduler looks at nothing else.
            stand_in: Any = SimpleNamespace(
                trial_id=f"earlier {trial.number}", config={"number": trial.number}
            )
            scheduler.on_trial_add(controller, stand_in)
            score = 0.0
            for record in trial.history:
                score = record[search.metric] if record["is_best"] else score
                numbers = {"epoch": record["epoch"], "score": score}
                scheduler.on_trial_result(controller, stand_in, numbers | {"again": True})
    return scheduler
