"""``fetal train``: ``fetal_core``'s training loop on Ray Train, over prepared shards."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import ray
import ray.train
import tyro

from fetal_core import bundle as bundles
from fetal_core import storage
from fetal_core.bundle import Bundle, BundleInfo
from fetal_core.checkpoint import load_trainer
from fetal_core.recipe import Recipe
from fetal_core.run_context import Event
from fetal_core.runlog import RunLog, training_history
from fetal_core.scoring import trained
from fetal_core.shards import ShardIndex
from ray_jobs.cluster import check_capacity, check_reachable, connected, has_spare_cpus, use_gpu
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say, training_view
from ray_jobs.job import Job, check_weights
from ray_jobs.ray_training import OnEvent, check_elastic, train_on_ray
from ray_jobs.tracked_run import TrackedRun, run_params
from ray_jobs.tracking import tracker
from ray_jobs.training_inputs import Inputs
from ray_jobs.workspace import Prepared, Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """A finished run.

    Attributes:
        best: record of the best epoch.
        epochs: epochs done.
    """

    run: Run
    best: dict[str, Any]
    epochs: int
    wall_s: float


def train(
    prepared_uri: str,
    run_uri: str,
    recipe: Recipe,
    cluster: ClusterConfig,
    on_event: OnEvent,
    force: bool = False,
) -> TrainOutcome:
    """Train on a prepared cohort and write the best epoch's model bundle.

    A run of the same folder that was interrupted is continued from its last checkpoint, if data,
    settings and code are those it began with, or with ``force``.

    Raises:
        StorageError: nothing has been prepared.
        StaleInputError: the cohort does not belong together, or it or the code is not the one that
            the run began with.
        ConfigError: the settings do not fit the data, or differ from the run's first ones.
        ModelError: the pretrained weights do not fit.
        NonFiniteLossError: the loss became NaN or infinite.
        ResourceError: the cluster is too small, or its machines do not see the run's folder.
    """
    started = time.monotonic()
    prepared, run = Prepared(storage.absolute(prepared_uri)), Run(storage.absolute(run_uri))
    _, _, index = prepared.load()
    prepared.check_made_for(recipe)
    check_weights(recipe.model)
    check_elastic(recipe.fit_config(), cluster, index.rows("train"))
    begin = partial(run.begin, prepared, recipe, index.fingerprint, force)
    if forced := begin(check_only=True):
        on_event({"kind": "forced", "differences": forced})
    if run.is_trained:
        on_event({"kind": "finished"})
        best = bundles.read_info(run.bundle_uri).metrics["validation"]
        return TrainOutcome(run, best, len(training_history(run.uri)), 0.0)
    log = RunLog(run.uri)
    params = run_params(recipe, index.fingerprint, cluster)

    def record(event: Event) -> None:
        log(event)
        tracked(event)
        on_event(event)

    with closing(log), TrackedRun(tracker(), run.uri, params, run.has_checkpoint) as tracked:
        with connected():
            check_capacity(cluster)
            begin()
            check_reachable(run.info_uri)
            run.remove_leftovers()
            on_event({"kind": "starting"})
            load = partial(Inputs.load, prepared.shards_uri, index)
            # Workers that hold the last processor would wait for ever for what is read with it.
            inputs = load if has_spare_cpus(cluster) else load()
            result = train_on_ray(
                run.uri, inputs, recipe.fit_config(), cluster, use_gpu(cluster), record
            )
        outcome = _finish(run, index, recipe, result, time.monotonic() - started)
        tracked.finish(outcome.best)
    return outcome


def _finish(
    run: Run, index: ShardIndex, recipe: Recipe, result: ray.train.Result, wall_s: float
) -> TrainOutcome:
    checkpoint = result.get_best_checkpoint("is_best", "max")
    if checkpoint is None:
        raise RuntimeError(f"{run.uri}: the run ended without a checkpoint")
    with checkpoint.as_directory() as folder:
        model = trained(recipe.model, len(index.classes), index.mean, index.std, Path(folder))
        progress = load_trainer(Path(folder))["progress"]
    best = progress["history"][progress["best_epoch"] - 1]
    info = describe(index, recipe, {"validation": best})
    Bundle(info, model).save(run.bundle_uri)
    # Of the last epoch that was reported; a linear head reports its best one alone.
    last = int(result.metrics["epoch"]) if result.metrics else 0
    epochs = max(last, progress["epochs_done"])
    return TrainOutcome(run, best, epochs, wall_s)


def describe(index: ShardIndex, recipe: Recipe, metrics: dict[str, Any]) -> BundleInfo:
    """A bundle's description before calibration."""
    mean, std = recipe.model.statistics(index.mean, index.std)
    return BundleInfo(
        architecture=recipe.model.architecture,
        classes=index.classes,
        preprocess=index.preprocess,
        loss=recipe.loss.name,
        mean=mean,
        std=std,
        metrics=metrics,
        recipe=recipe.model_dump(mode="json"),
        hashes={
            "manifest": index.manifest_hash,
            "split": index.split_hash,
            "shards": index.fingerprint,
        },
        versions=bundles.software_versions() | {"ray": ray.__version__},
        git_commit=bundles.git_commit(),
        created=bundles.now(),
    )


@dataclass
class TrainArgs:
    """Train on a prepared cohort; a run that was interrupted is continued by its name."""

    prepared: tyro.conf.Positional[str]
    """Folder that `fetal prepare` wrote; its settings, or the run's own, are the default ones."""
    job: Annotated[Job, tyro.conf.arg(name="")]
    name: str = "run"
    """Name of the run."""
    runs: str = "runs"
    """Folder of all runs."""
    config: str | None = None
    """Named configuration, or path of a .toml file; the flags below override it."""
    force: bool = False
    """Resume a run also if data, settings or code are no longer those that it began with."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = read_args(argv)
    run_uri = _run_uri(args)
    recipe, cluster = args.job.recipe(), args.job.cluster
    show(train_shown(args.prepared, run_uri, recipe, cluster, args.force))


def read_args(argv: Sequence[str]) -> TrainArgs:
    """The arguments; settings that are not given are the run's own, or the cohort's."""
    return parse_args(TrainArgs, argv, "fetal train", _run_uri)


def _run_uri(args: TrainArgs) -> str:
    return storage.join(args.runs, args.name)


def train_shown(
    prepared: str, run_uri: str, recipe: Recipe, cluster: ClusterConfig, force: bool = False
) -> TrainOutcome:
    """``train`` with a progress bar and a line for each epoch."""
    with training_view() as view:
        return train(prepared, run_uri, recipe, cluster, view, force)


def show(outcome: TrainOutcome) -> None:
    """Print how a run ended."""
    best = outcome.best
    say(
        f"trained {outcome.run.uri}: best epoch {best['epoch']:.0f} of {outcome.epochs}, "
        f"validation accuracy {best['val_accuracy']:.1%}, macro-F1 {best['val_macro_f1']:.3f}, "
        f"{outcome.wall_s:.0f} s"
    )
    say(f"model bundle: {outcome.run.bundle_uri}")


if __name__ == "__main__":
    sys.exit(stage("train"))
