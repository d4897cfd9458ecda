"""A sweep's folder: its settings, and one folder for each trial, which outlive any process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

from fetal_core import storage
from fetal_core.checkpoint import CheckpointStore
from fetal_core.config import differences, parse
from fetal_core.errors import ConfigError, StaleInputError, StorageError
from fetal_core.recipe import Recipe
from fetal_core.runlog import training_history
from fetal_core.search import Candidate, SearchConfig
from fetal_core.study_config import StudyConfig
from fetal_core.trials import Status, Trial, ranked
from ray_jobs.job import Job
from ray_jobs.workspace import CHECKPOINTS, RECIPE, Prepared, Run

SETTINGS = "sweep.json"
# No trial depends on these.
_FREE = ("cluster", "study", "calibrate", "evaluate")


class SweepJob(Job):
    """A recipe, what to vary in it, and the resources to do so."""

    search: SearchConfig = SearchConfig()
    study: StudyConfig = StudyConfig()


@dataclass(frozen=True)
class TrialFolder:
    """A trial's folder; settings and history lie in it as in that of a training run.

    Attributes:
        uri: the folder.
        number: of the trial, from 0.
    """

    uri: str
    number: int

    @property
    def trial_uri(self) -> str:
        """What the trial is; written before it starts."""
        return storage.join(self.uri, "trial.json")

    @property
    def recipe_uri(self) -> str:
        """Its whole settings."""
        return storage.join(self.uri, RECIPE)

    @property
    def result_uri(self) -> str:
        """How it ended; not there while it is unfinished."""
        return storage.join(self.uri, "result.json")

    @property
    def checkpoints(self) -> CheckpointStore:
        """Its latest and best checkpoint."""
        return CheckpointStore(storage.join(self.uri, CHECKPOINTS))

    def predictions_uri(self, part: str) -> str:
        """Its best model's scores of a part, in sweeps that compare arms."""
        return storage.join(self.uri, f"{part}-scores.parquet")

    def begin(self, candidate: Candidate) -> None:
        """Write down what the trial is."""
        storage.write_json(self.recipe_uri, candidate.recipe.model_dump(mode="json"))
        described = {
            "number": self.number,
            "assignment": candidate.assignment,
            "arm": candidate.arm,
            "epochs": candidate.recipe.train.epochs,
        }
        storage.write_json(self.trial_uri, described)

    def note(self, **facts: Any) -> None:
        """Add to what is written about the trial."""
        storage.write_json(self.trial_uri, storage.read_json(self.trial_uri) | facts)

    def end(self, status: Status, reason: str = "", retry: bool = False) -> None:
        """Write down how it ended; the first word stands.

        Args:
            status: how.
            reason: of a failure.
            retry: whether a sweep that goes on tries it again.
        """
        if not storage.is_file(self.result_uri):
            result = {"status": status, "reason": reason, "retry": retry}
            storage.write_json(self.result_uri, result)

    def reopened(self) -> Trial:
        """The trial; unfinished again if it failed in a way that may not repeat."""
        if storage.is_file(self.result_uri) and storage.read_json(self.result_uri)["retry"]:
            storage.remove(self.result_uri)
        return self.load()

    def load(self) -> Trial:
        """Everything that is known about it."""
        facts = storage.read_json(self.trial_uri)
        result: dict[str, Any] = {"status": "unfinished", "reason": ""}
        if storage.is_file(self.result_uri):
            result = storage.read_json(self.result_uri)
        history = training_history(self.uri)
        return Trial(
            number=facts["number"],
            assignment=facts["assignment"],
            arm=facts["arm"],
            status=result["status"],
            reason=result["reason"],
            epochs=facts["epochs"],
            parameters=facts.get("parameters", 0),
            work_s=sum(record["epoch_s"] for record in history) + facts.get("features_s", 0.0),
            history=history,
        )


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder."""

    uri: str

    @property
    def report_uri(self) -> str:
        """The report to read."""
        return storage.join(self.uri, "sweep.html")

    @property
    def figures_uri(self) -> str:
        """The report's numbers."""
        return storage.join(self.uri, "figures.json")

    @property
    def best(self) -> Run:
        """The best trial as a run that can be evaluated."""
        return Run(storage.join(self.uri, "best"))

    @property
    def settings_uri(self) -> str:
        """What it was started with."""
        return storage.join(self.uri, SETTINGS)

    def trial(self, number: int) -> TrialFolder:
        """Folder of a trial."""
        return TrialFolder(storage.join(self.uri, "trials", f"{number:04d}"), number)

    def begin(self, prepared: Prepared, job: SweepJob, shards: str) -> None:
        """Write down the settings, or check that a sweep that goes on has the same.

        More trials may be asked for than at first.

        Raises:
            ConfigError: the folder holds a sweep of other settings, or fewer trials are wanted.
            StaleInputError: the shards have changed since the sweep began.
        """
        settings = {
            "prepared": prepared.uri,
            "shards": shards,
            "job": job.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        if storage.is_file(self.trial(0).trial_uri):
            self._check_same(settings, job)
        storage.write_json(self.settings_uri, settings)

    def settings(self) -> tuple[Prepared, SweepJob]:
        """The cohort and the settings.

        Raises:
            StorageError: this is not a sweep's folder.
        """
        uri = self.settings_uri
        if not storage.is_file(uri):
            raise StorageError(f"{self.uri}: not a sweep. Give the folder that `fetal tune` made.")
        found = storage.read_json(uri)
        return Prepared(found["prepared"]), parse(SweepJob, found["job"], uri)

    def trials(self) -> list[Trial]:
        """All trials that have begun, by number."""
        with ThreadPoolExecutor(storage.READ_AHEAD) as pool:
            return list(pool.map(TrialFolder.load, self._folders()))

    def reopened(self) -> list[Trial]:
        """All trials that have begun; those that failed by accident are unfinished again."""
        with ThreadPoolExecutor(storage.READ_AHEAD) as pool:
            return list(pool.map(TrialFolder.reopened, self._folders()))

    def prune(self, trials: Sequence[Trial], metric: str, keep: int) -> None:
        """Delete the checkpoints of all trials that have ended but the best ``keep``."""
        ended = [trial for trial in trials if trial.status != "unfinished"]
        usable = [trial for trial in ended if trial.status != "failed"]
        kept = {trial.number for trial in ranked(usable, metric)[:keep]}
        for trial in ended:
            if trial.number not in kept:
                storage.remove(self.trial(trial.number).checkpoints.uri)

    def recipe(self, trial: Trial) -> Recipe:
        """The whole settings of a trial."""
        uri = self.trial(trial.number).recipe_uri
        return parse(Recipe, storage.read_json(uri), uri)

    def _folders(self) -> list[TrialFolder]:
        """The trials that have begun; one listing, however many they are."""
        trials = storage.join(self.uri, "trials")
        there = set(storage.list_files(trials)) if storage.is_dir(trials) else set()
        folders = map(self.trial, count())
        return list(takewhile(lambda folder: folder.trial_uri in there, folders))

    def _check_same(self, settings: dict[str, Any], job: SweepJob) -> None:
        before = storage.read_json(self.settings_uri)
        if before["shards"] != settings["shards"]:
            raise StaleInputError(
                f"{self.uri}: the shards have changed since this sweep began. Choose a new --name."
            )
        _, saved = self.settings()
        found = differences(saved.model_dump(mode="json"), job.model_dump(mode="json"))
        wanted = found.pop("search.trials", (0, 0))
        changed = [
            f"{key}: {old!r} -> {new!r}"
            for key, (old, new) in found.items()
            if key.partition(".")[0] not in _FREE and key != "search.keep_checkpoints"
        ]
        if wanted[1] < wanted[0]:
            changed.append(f"search.trials: {wanted[0]} -> {wanted[1]}; it can only grow")
        if changed:
            raise ConfigError(
                f"{self.uri}: this sweep began with other settings:\n"
                + "\n".join(f"  - {line}" for line in changed)
                + "\nUse `fetal tune --resume` with its name to go on, or choose a new --name."
            )
