"""How the trials of a sweep end: to their folders, and to the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray.tune import Callback

from fetal_core.importance import value_text
from fetal_core.search import SearchConfig
from fetal_core.trials import Status, Trial
from ray_jobs.console import progress_bar, say
from ray_jobs.failures import user_error
from ray_jobs.sweep import Sweep
from ray_jobs.tracked_sweep import TrackedSweep

# A trial that has ended, and how many have.
OnTrial = Callable[[Trial, int], None]


class Bookkeeper(Callback):
    """Writes down how trials end, deletes checkpoints that are no longer needed, counts work.

    Attributes:
        ended: trials that have ended, by number.
        work_s: time of the epochs that this session has trained.
    """

    def __init__(
        self,
        sweep: Sweep,
        search: SearchConfig,
        known: Sequence[Trial],
        tracked: TrackedSweep,
        on_end: OnTrial,
    ) -> None:
        """
        Args:
            sweep: the folder.
            search: how trials are ranked, and how many keep their checkpoints.
            known: trials of earlier sessions.
            tracked: where the numbers go as well.
            on_end: gets every trial that has ended.
        """
        self.ended = {trial.number: trial for trial in known if trial.status != "unfinished"}
        self.work_s = 0.0
        self._sweep, self._search, self._tracked, self._on_end = sweep, search, tracked, on_end

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray's pickle of the experiment is never read."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or goes on."""
        self._tracked.begin(self._sweep.trial(trial.config["number"]).load())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take an epoch; its time counts if it was trained now."""
        if "record" not in result:
            return
        self._tracked.epoch(trial.config["number"], result["record"])
        if not result["again"]:
            self.work_s += result["record"]["epoch_s"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has come to its end, or the scheduler has stopped it."""
        if "epoch" in trial.last_result:
            self._end(trial, "stopped", "")
        else:
            self._end(trial, "failed", "it ended without an epoch", retry=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process has died more often than it may; a continued sweep tries it again."""
        error = trial.get_pickled_error()
        known = user_error(error) if error is not None else None
        lines = [line.strip() for line in str(known or error).splitlines() if line.strip()]
        # The last line of a traceback, the first of a message.
        reason = lines[0 if known is not None else -1] if lines else "its process died"
        self._end(trial, "failed", reason, retry=True)

    def _end(self, trial: Any, status: Status, reason: str, retry: bool = False) -> None:
        folder = self._sweep.trial(trial.config["number"])
        folder.end(status, reason, retry)
        ended = folder.load()
        self.ended[ended.number] = ended
        keep = self._search.keep_checkpoints
        self._sweep.prune(list(self.ended.values()), self._search.metric, keep)
        self._tracked.end(ended, self._search.metric)
        self._on_end(ended, len(self.ended))


@contextmanager
def sweep_view(metric: str) -> Iterator[Callable[[Trial, int, int], None]]:
    """A bar for the trials of a sweep, and a line for each that ends."""
    with progress_bar("sweep", "trials") as bar:

        def show(trial: Trial, done: int, total: int) -> None:
            bar(done, total)
            settings = ", ".join(f"{key} {value_text(v)}" for key, v in trial.assignment.items())
            arm = f"{trial.arm}: " if trial.arm else ""
            score = trial.score(metric)
            value = "" if score is None else f"{metric} {score:.3f}  "
            say(f"trial {trial.number:>3}  {value}{_ending(trial)}  {arm}{settings or 'default'}")

        yield show


def _ending(trial: Trial) -> str:
    epochs = len(trial.history)
    if trial.status == "failed":
        return f"failed: {trial.reason}"
    after = f" after epoch {epochs} of {trial.epochs}" if trial.status == "stopped" else ""
    return f"{trial.status}{after}, {trial.work_s:.0f} s"
