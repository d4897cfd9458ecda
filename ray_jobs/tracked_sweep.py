"""A sweep and its trials in a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from fetal_core import storage
from fetal_core.trials import Trial
from ray_jobs.sweep import Sweep, SweepJob
from ray_jobs.tracked_run import run_params
from ray_jobs.tracking import Tracker, ending


class TrackedSweep:
    """A sweep in a tracker while the block lasts; its trials are runs below it."""

    def __init__(self, tracker: Tracker, sweep: Sweep, job: SweepJob, shards: str) -> None:
        """The sweep of a folder; nothing is sent yet."""
        self._tracker, self._sweep = tracker, sweep
        # These may change while the sweep stays the same.
        free = {"trials", "keep_checkpoints"}
        search = job.search.model_dump(mode="json", exclude=free, exclude_defaults=True)
        self._params = run_params(job.recipe(), shards, job.cluster) | {"search": search}
        self._id = ""
        self._trials: dict[int, str] = {}
        self._ended: set[int] = set()
        self._result: tuple[dict[str, float], list[str]] = ({}, [])

    def __enter__(self) -> TrackedSweep:
        uri = self._sweep.uri
        self._id = self._tracker.begin(uri, storage.name(uri), self._params)
        return self

    def begin(self, trial: Trial) -> None:
        """A trial begins, or goes on."""
        if trial.number not in self._trials:
            uri = self._sweep.trial(trial.number).uri
            params = {"arm": trial.arm} if trial.arm else {}
            name = f"{storage.name(self._sweep.uri)}-{trial.number:04d}"
            settings = params | dict(trial.assignment)
            self._trials[trial.number] = self._tracker.begin(uri, name, settings, self._id)

    def epoch(self, number: int, record: Mapping[str, Any]) -> None:
        """An epoch of a trial."""
        self._tracker.epoch(self._trials[number], record)

    def end(self, trial: Trial, metric: str) -> None:
        """A trial has ended; its process may have died before it began."""
        self.begin(trial)
        score = trial.score(metric)
        metrics = {} if score is None else {f"best_{metric}": score}
        assert trial.status != "unfinished"
        self._tracker.end(self._trials[trial.number], trial.status, metrics)
        self._ended.add(trial.number)

    def finish(self, metrics: Mapping[str, float], files: list[str]) -> None:
        """Numbers and files of a sweep that ends well."""
        self._result = dict(metrics), files

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in set(self._trials) - self._ended:
            self._tracker.end(self._trials[number], "interrupted")
        self._tracker.end(self._id, ending(error), *self._result)
