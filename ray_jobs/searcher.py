"""Which configuration a sweep tries next, for Ray Tune."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fetal_core.errors import ConfigError
from fetal_core.importance import distribution
from fetal_core.recipe import Recipe
from fetal_core.search import (
    Assignment,
    Candidate,
    Parameter,
    SearchConfig,
    Value,
    active,
    assign,
    ordered,
)
from fetal_core.trials import Trial


class SweepSearcher(Searcher):
    """Hands out the trials of a sweep: unfinished ones of an earlier session, then new ones.

    A configuration is ``number`` and ``recipe``; ``on_begin`` is told of every new trial before it
    starts, so that a trial is on disk before any process works on it.
    """

    def __init__(
        self,
        search: SearchConfig,
        recipe: Recipe,
        planned: Sequence[Candidate],
        known: Sequence[Trial],
        on_begin: Callable[[int, Candidate], None],
    ) -> None:
        """
        Args:
            search: what to try.
            recipe: settings that a trial does not assign.
            planned: all trials; empty for TPE, which finds them as it goes.
            known: all trials of earlier sessions.
            on_begin: called with number and candidate of a new trial.
        """
        super().__init__(metric="score", mode="max")
        self._recipe, self._planned, self._on_begin = recipe, planned, on_begin
        self._unfinished = [trial for trial in known if trial.status == "unfinished"]
        self._begun = len(known)
        self._tpe = TpeSampler(search, known) if search.algorithm == "tpe" else None
        self.total = search.trials if self._tpe else len(planned)
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray's pickle of the experiment is never read."""
        return {}

    @property
    def left(self) -> int:
        """Number of trials that this session has still to run."""
        return len(self._unfinished) + self.total - self._begun

    def suggest(self, trial_id: str) -> Any:
        """The configuration of Tune's next trial."""
        if self._unfinished:
            trial = self._unfinished.pop(0)
            number, recipe = trial.number, assign(self._recipe, trial.assignment)
        elif self._begun < self.total:
            number = self._begun
            candidate = self._next(number)
            recipe = candidate.recipe
            self._on_begin(number, candidate)
            self._begun += 1
        else:
            return Searcher.FINISHED
        self._numbers[trial_id] = number
        return {"number": number, "recipe": recipe.model_dump(mode="json")}

    def _next(self, number: int) -> Candidate:
        if self._tpe is None:
            return self._planned[number]
        while True:
            assignment = self._tpe.ask(number)
            try:
                return Candidate(assignment, assign(self._recipe, assignment))
            except ConfigError:
                # Settings that do not go together; the sampler learns to avoid them.
                self._tpe.tell(number, None)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn how a trial ended."""
        number = self._numbers[trial_id]
        if self._tpe is not None:
            failed = error or not result or "epoch" not in result
            self._tpe.tell(number, None if failed or result is None else result["score"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' own folders are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see ``save``."""


class TpeSampler:
    """Optuna's tree-structured Parzen estimator over a space with conditions."""

    def __init__(self, search: SearchConfig, known: Sequence[Trial]) -> None:
        """Start from what earlier trials have found."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = search
        self._order = ordered(search.space)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                # The earlier trials stand for the draws that a resumed sweep has already made.
                seed=search.seed + len(known),
                n_startup_trials=max(4, search.trials // 4),
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, optuna.Trial] = {}
        self._resumed = {t.number: t.assignment for t in known if t.status == "unfinished"}
        for trial in known:
            if trial.status != "unfinished":
                failed = trial.status == "failed"
                self._add(trial.assignment, None if failed else trial.score(search.metric))

    def ask(self, number: int) -> Assignment:
        """The settings of trial ``number``; the first has the recipe's if wanted."""
        if number == 0 and self._search.include_default:
            return {}
        asked = self._study.ask()
        drawn: Assignment = {}
        for name in self._order:
            if active(self._search.space, drawn, name):
                drawn[name] = _suggest(asked, name, self._search.space[name])
        self._asked[number] = asked
        return drawn

    def tell(self, number: int, score: float | None) -> None:
        """How a trial ended: its score, or None for a failure."""
        asked = self._asked.pop(number, None)
        if asked is None:
            self._add(self._resumed.pop(number, {}), score)
        elif score is None:
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._study.tell(asked, score)

    def _add(self, assignment: Assignment, score: float | None) -> None:
        if not assignment:
            return
        space = self._search.space
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL if score is None else TrialState.COMPLETE,
                value=score,
                params=dict(assignment),
                distributions={name: distribution(space[name]) for name in assignment},
            )
        )


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Value:
    if parameter.values is not None:
        value: Any = trial.suggest_categorical(name, parameter.values)
        return value  # type: ignore[no-any-return]
    if parameter.whole is not None:
        return trial.suggest_int(name, *parameter.whole)
    if parameter.loguniform is not None:
        return trial.suggest_float(name, *parameter.loguniform, log=True)
    return trial.suggest_float(name, *(parameter.uniform or (0.0, 1.0)))
