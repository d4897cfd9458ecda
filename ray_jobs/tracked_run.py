"""A training run, and what is found about it later, in the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

from fetal_core import storage
from fetal_core.recipe import Recipe
from fetal_core.run_context import Event
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.tracking import Tracker, ending

_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc_macro")


class TrackedRun:
    """A training run in a tracker, while the block lasts; takes the events of the run."""

    def __init__(
        self, tracker: Tracker, folder_uri: str, params: Mapping[str, Any], resumes: bool
    ) -> None:
        """A run of ``folder_uri`` with ``run_params``; ``resumes`` if there is a checkpoint."""
        self._tracker = tracker
        name = storage.name(folder_uri)
        self._begin = partial(tracker.begin, folder_uri, name, params, resumes=resumes)
        self._run_id = ""
        self._best: dict[str, float] = {}

    def __enter__(self) -> TrackedRun:
        self._run_id = self._begin()
        return self

    def __call__(self, event: Event) -> None:
        """Take an event of a run context; a resumed run's first one tells its earlier epochs."""
        if event["kind"] == "epoch":
            self._tracker.epoch(self._run_id, event)
        elif event["kind"] == "start":
            for record in event["history"]:
                self._tracker.epoch(self._run_id, record)
        elif event["kind"] == "probe":
            for record in event["history"]:
                self._tracker.epoch(self._run_id, {"phase": "probe", **record})

    def finish(self, best: Mapping[str, float]) -> None:
        """Tell the record of the best epoch of a run that ends well."""
        validation = {key: value for key, value in best.items() if key.startswith("val_")}
        self._best = {f"best_{key}": value for key, value in validation.items()}
        self._best["best_epoch"] = best["epoch"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tracker.end(self._run_id, ending(error), self._best)


def run_params(recipe: Recipe, shards: str, cluster: ClusterConfig | None = None) -> dict[str, Any]:
    """What a training run is known by, and the cluster that it uses.

    Args:
        recipe: all settings.
        shards: fingerprint of the images.
        cluster: None to find a run by its params.
    """
    params = recipe.model_dump(mode="json") | {"shards": shards}
    return params if cluster is None else params | {"cluster": cluster.model_dump(mode="json")}


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the test part, and their intervals, out of what ``metrics.json`` holds."""
    found: dict[str, float] = {}
    for name in _FIGURES:
        if metrics[name] is not None:
            found[f"test_{name}"] = metrics[name]
        if name in metrics["intervals"]:
            low, high = metrics["intervals"][name]
            found |= {f"test_{name}_low": low, f"test_{name}_high": high}
    return found
