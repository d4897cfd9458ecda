"""What is known about the trials of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fetal_core.search import Assignment

Status = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        number: from 0, in the order of their configurations.
        assignment: settings by dotted name, where they are not the recipe's.
        arm: name of its arm, None in a sweep without arms.
        status: ``stopped`` by the scheduler, ``failed`` with a reason, ``unfinished`` when the
            sweep was interrupted.
        reason: of a failure, one line; else empty.
        epochs: planned number.
        parameters: trainable ones; 0 before it has begun.
        work_s: time of its epochs and of the features of a linear probe.
        history: a record for each epoch, as in ``metrics.jsonl``: ``epoch``, ``train_loss``,
            ``train_accuracy``, ``val_loss``, ``val_accuracy``, ``val_macro_f1``, ``lr``,
            ``epoch_s``, and ``is_best`` (1 where the epoch was the best so far).
    """

    number: int
    assignment: Assignment
    arm: str | None
    status: Status
    reason: str
    epochs: int
    parameters: int
    work_s: float
    history: Sequence[Mapping[str, Any]]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """Record of the best epoch, whose weights the trial keeps; None before the first."""
        return next((record for record in reversed(self.history) if record["is_best"]), None)

    def score(self, metric: str) -> float | None:
        """``metric`` at the best epoch."""
        return None if self.best is None else float(self.best[metric])


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Trials with a score, the best first; of equal ones the earlier."""
    scored = [trial for trial in trials if trial.score(metric) is not None]
    return sorted(scored, key=lambda trial: (-(trial.score(metric) or 0.0), trial.number))


def best_trial(trials: Sequence[Trial], metric: str) -> Trial | None:
    """The best of the trials that did not fail; unfinished ones only where nothing has ended."""
    ended = [trial for trial in trials if trial.status in ("finished", "stopped")]
    usable = ended or [trial for trial in trials if trial.status == "unfinished"]
    return next(iter(ranked(usable, metric)), None)
