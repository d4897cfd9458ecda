"""Runs and trials in MLflow, where ``MLFLOW_TRACKING_URI`` names a tracking store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from fetal_core import storage
from fetal_core.config import digest
from ray_jobs.mlflow_store import Values, failure, metrics_of, open_store, params_of, unusable

logger = logging.getLogger(__name__)

Status = Literal["finished", "stopped", "failed", "interrupted"]

FOLDER, KEY, STATUS = "fetal.folder", "fetal.key", "fetal.status"
_PARENT = "mlflow.parentRunId"
_MLFLOW_STATUS = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_PAUSE_S = 60.0
_PARAMS, _METRICS = 100, 1000  # of a request


class Tracker:
    """Takes what runs, sweeps and trials report; this one keeps nothing."""

    def begin(
        self,
        folder_uri: str,
        name: str,
        params: Values,
        parent: str | None = None,
        resumes: bool = True,
    ) -> str:
        """Start a run, or continue that of the same folder and settings that has not ended.

        Args:
            folder_uri: absolute; a run is known by it, so a trial has one of its own.
            name: shown.
            params: settings as JSON values, nested or not; those under ``cluster`` may differ
                when a run continues.
            parent: id of the sweep that a trial belongs to.
            resumes: whether there may be a run to continue.

        Returns:
            Its id; "" for a trial that could not be started, whose numbers are then dropped.

        Raises:
            StorageError: a run without a parent could not be started.
        """
        return ""

    def epoch(self, run_id: str, record: Values) -> None:
        """Take the numbers of an epoch, under its ``phase`` if there is one.

        What has been taken of an epoch stays. What the store refuses is sent with a later epoch.
        """

    def end(
        self,
        run_id: str,
        status: Status,
        metrics: Mapping[str, float] | None = None,
        artifacts: Sequence[str] = (),
    ) -> None:
        """Close a run with final numbers and those of the files that exist on this machine."""

    def amend(
        self,
        folder_uri: str,
        params: Values,
        metrics: Mapping[str, float],
        artifacts: Sequence[str] = (),
    ) -> None:
        """Add numbers and files to the latest run of a folder and settings, if there is one."""


def ending(error: BaseException | None) -> Status:
    """How a block has ended, by what it raised."""
    if error is None:
        return "finished"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def tracker() -> Tracker:
    """The tracker that the environment asks for.

    ``MLFLOW_TRACKING_URI`` names the store, ``MLFLOW_EXPERIMENT_NAME`` the experiment.

    Raises:
        ConfigError: MLflow is not installed.
        StorageError: the store does not answer.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return Tracker()
    return MlflowTracker(uri, os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fetal-planes")


class MlflowTracker(Tracker):
    """Runs in an experiment of an MLflow store; a store that fails later costs numbers, no run."""

    def __init__(self, uri: str, experiment: str, pause_s: float = _PAUSE_S) -> None:
        """Open the store, and the experiment, which is created where there is none.

        Args:
            uri: of the store.
            experiment: name.
            pause_s: for how long epochs are only collected after the store has failed.

        Raises:
            ConfigError: MLflow, or what it needs for this kind of store, is not installed.
            StorageError: the store does not answer.
        """
        self._uri = uri
        self._client, self._experiment = open_store(uri, experiment)
        self._pause_s = pause_s
        self._waiting: dict[str, list[Any]] = {}
        self._known: dict[str, set[tuple[str, int]]] = {}
        self._failing = False
        self._retry_at = 0.0

    def begin(
        self,
        folder_uri: str,
        name: str,
        params: Values,
        parent: str | None = None,
        resumes: bool = True,
    ) -> str:
        """Start or continue a run."""
        begun: list[str] = []
        error = self._try(
            lambda: begun.append(self._begin(folder_uri, name, params, parent, resumes)),
        )
        if error is not None and parent is None:
            raise unusable(self._uri, error) from None
        return begun[0] if begun else ""

    def epoch(self, run_id: str, record: Values) -> None:
        """Send an epoch, and those that wait."""
        prefix = f"{record['phase']}/" if "phase" in record else ""
        step = int(record["epoch"])
        if not run_id or (prefix, step) in self._known[run_id]:
            return
        self._known[run_id].add((prefix, step))
        self._waiting[run_id] += metrics_of(record, step, prefix)
        if time.monotonic() >= self._retry_at:
            self._try(partial(self._send, run_id))

    def end(
        self,
        run_id: str,
        status: Status,
        metrics: Mapping[str, float] | None = None,
        artifacts: Sequence[str] = (),
    ) -> None:
        """Close a run."""
        if not run_id:
            return

        def close() -> None:
            self._waiting[run_id] += metrics_of(metrics or {})
            self._send(run_id)
            self._client.set_terminated(run_id, _MLFLOW_STATUS[status])
            self._client.set_tag(run_id, STATUS, status)
            self._upload(run_id, artifacts)

        self._try(close)
        del self._waiting[run_id], self._known[run_id]

    def amend(
        self,
        folder_uri: str,
        params: Values,
        metrics: Mapping[str, float],
        artifacts: Sequence[str] = (),
    ) -> None:
        """Add to a run that has ended."""

        def add() -> None:
            run = self._latest(folder_uri, params)
            if run is not None:
                self._client.log_batch(run.info.run_id, metrics=metrics_of(metrics))
                self._upload(run.info.run_id, artifacts)

        self._try(add)

    def _try(self, action: Callable[[], None]) -> Exception | None:
        """Training goes on whatever happens to its tracker; an outage is told once."""
        try:
            action()
        except Exception as error:
            if not self._failing:
                logger.warning("%s\nThe run goes on without it.", failure(self._uri, error))
            self._failing = True
            self._retry_at = time.monotonic() + self._pause_s
            return error
        self._failing = False
        return None

    def _begin(
        self, folder_uri: str, name: str, params: Values, parent: str | None, resumes: bool
    ) -> str:
        from mlflow.entities import RunTag

        tags = {FOLDER: folder_uri, KEY: _key(folder_uri, params), STATUS: "running"}
        tags |= {_PARENT: parent} if parent else {}
        run = self._latest(folder_uri, params) if resumes else None
        if run is None or run.data.tags.get(STATUS) in ("finished", "stopped"):
            run = self._client.create_run(self._experiment, tags=tags, run_name=name)
        run_id: str = run.info.run_id
        self._client.update_run(run_id, status="RUNNING")
        self._client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
        missing = [param for param in params_of(params) if param.key not in run.data.params]
        for first in range(0, len(missing), _PARAMS):
            self._client.log_batch(run_id, params=missing[first : first + _PARAMS])
        self._waiting[run_id] = []
        self._known[run_id] = self._epochs(run)
        return run_id

    def _epochs(self, run: Any) -> set[tuple[str, int]]:
        """Phase, as a prefix, and number of the epochs that a run has."""
        return {
            (key.removesuffix("epoch"), point.step)
            for key in run.data.metrics
            if key == "epoch" or key.endswith("/epoch")
            for point in self._client.get_metric_history(run.info.run_id, key)
        }

    def _latest(self, folder_uri: str, params: Values) -> Any:
        found = self._client.search_runs(
            [self._experiment],
            f"tags.`{KEY}` = '{_key(folder_uri, params)}'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        return found[0] if found else None

    def _send(self, run_id: str) -> None:
        waiting = self._waiting[run_id]
        while waiting:
            self._client.log_batch(run_id, metrics=waiting[:_METRICS])
            del waiting[:_METRICS]

    def _upload(self, run_id: str, artifacts: Sequence[str]) -> None:
        for uri in artifacts:
            if not storage.is_remote(uri) and storage.exists(uri):
                self._client.log_artifact(run_id, storage.absolute(uri))


def _key(folder_uri: str, params: Values) -> str:
    """What a run is found by."""
    return digest([folder_uri, {key: value for key, value in params.items() if key != "cluster"}])
