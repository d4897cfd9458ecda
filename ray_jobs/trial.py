"""One trial of a sweep, in its Ray Tune process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.tune
import torch

from fetal_core.errors import FetalError, StorageError
from fetal_core.fit_config import FitConfig
from fetal_core.machine import cores
from fetal_core.probe import Features
from fetal_core.recipe import Recipe
from fetal_core.run_context import Event, LocalContext
from fetal_core.runlog import RunLog
from fetal_core.scoring import save_predictions, score_rows, trained
from fetal_core.train import features_key, fit, limited
from fetal_core.training_data import TrainingData
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.failures import WorkerDiedError
from ray_jobs.ray_training import train_on_ray
from ray_jobs.sweep import Sweep, TrialFolder
from ray_jobs.training_inputs import Inputs

FAILED_SCORE = -1.0


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep have in common; no part of the cohort but these two.

    Attributes:
        sweep_uri: folder of the sweep.
        inputs: training and validation rows.
        cluster: processes and threads of a trial.
        gpu: whether its processes have a GPU each.
        metric: validation number to report as ``score``.
        features: the frozen backbone's features by ``features_key``, for linear probes.
        keep_predictions: whether the best model's scores are written, to compare arms, also by
            hypotheses that are added later.
        trials_a_machine: how many share the cores of a machine.
    """

    sweep_uri: str
    inputs: Inputs
    cluster: ClusterConfig
    gpu: bool
    metric: str
    features: Mapping[str, Any]
    keep_predictions: bool
    trials_a_machine: int

    @property
    def threads(self) -> int:
        """Compute threads of a trial with one worker."""
        share = max(self.cluster.cpus_per_worker, cores() // self.trials_a_machine)
        return self.cluster.threads_per_worker or share

    @property
    def device(self) -> str:
        """Of the trial's own process, which has no GPU beside workers that have them."""
        return "cuda" if self.gpu and self.cluster.workers == 1 else "cpu"


def run_trial(config: dict[str, Any], shared: Shared) -> None:
    """The function that Ray Tune runs; goes on from the trial's own checkpoint if there is one.

    A failure that a second attempt would repeat is written down and reported as a score below all
    others, so that the sweep goes on; anything else is left to Tune, which tries again.

    Args:
        config: ``number`` of the trial, and ``recipe``.
        shared: what all trials have in common.
    """
    folder = Sweep(shared.sweep_uri).trial(config["number"])
    reporter = _Reporter(folder, shared.metric)
    recipe = Recipe(**config["recipe"])
    folder.note(machine=ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    try:
        # A linear head on features that are there already is too little for several workers.
        if shared.cluster.workers == 1 or recipe.train.mode == "probe":
            _fit_here(recipe.fit_config(), folder, shared, reporter)
        else:
            train_on_ray(
                folder.uri,
                shared.inputs,
                recipe.fit_config(),
                shared.cluster,
                shared.gpu,
                reporter,
                folder.checkpoints.uri,
            )
        if shared.keep_predictions:
            _keep_predictions(recipe.fit_config(), folder, shared)
        folder.end("finished")
    except (WorkerDiedError, StorageError):
        raise
    except (FetalError, MemoryError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        folder.end("failed", reason)
        ray.tune.report({"score": FAILED_SCORE})


class _Reporter:
    """Takes the events of a training run: writes the history and tells Ray Tune of each epoch."""

    def __init__(self, folder: TrialFolder, metric: str) -> None:
        self._folder, self._metric = folder, metric
        self._score = FAILED_SCORE
        self._log = RunLog(folder.uri, plots=False)

    def __call__(self, event: Event) -> None:
        self._log(event)
        if event["kind"] == "start":
            self._folder.note(parameters=event["parameters"])
            # After a restart, Tune and its scheduler hear of all epochs again.
            for record in event["history"]:
                self.report(record, again=True)
        elif event["kind"] == "probe":
            facts = {"parameters": event["parameters"], "features_s": event["features_s"]}
            self._folder.note(**facts)
        elif event["kind"] == "report":
            self.report(event)

    def report(self, record: Mapping[str, Any], again: bool = False) -> None:
        """Tell Ray Tune of an epoch whose checkpoint is safe: the score of the best one so far."""
        numbers = {key: value for key, value in record.items() if key != "kind"}
        if record["is_best"]:
            self._score = record[self._metric]
        ray.tune.report(
            {
                "epoch": record["epoch"],
                "score": self._score,
                "again": again,
                "record": numbers,
            }
        )


def _fit_here(config: FitConfig, folder: TrialFolder, shared: Shared, reporter: _Reporter) -> None:
    torch.set_num_threads(shared.threads)
    context = LocalContext(
        folder.checkpoints.uri, shared.device, on_event=reporter, on_report=reporter.report
    )
    fit(config, _data(config, shared), context)


def _keep_predictions(config: FitConfig, folder: TrialFolder, shared: Shared) -> None:
    torch.set_num_threads(shared.threads)
    data = limited(config, shared.inputs.training_data())
    with folder.checkpoints.best() as best:
        model = trained(config.model, len(data.classes), data.mean, data.std, best)
    model.to(shared.device)
    for part, store in (("val", data.val), ("train", data.train)):
        found = score_rows(model, config.loss.name, store, data.classes)
        save_predictions(folder.predictions_uri(part), found)


def _data(config: FitConfig, shared: Shared) -> TrainingData:
    data = shared.inputs.training_data()
    if config.train.mode != "probe":
        return data
    ref = shared.features.get(features_key(config))
    features: tuple[Features, Features] | None = None if ref is None else ray.get(ref)
    return replace(data, features=features)
