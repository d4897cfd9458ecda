"""``fetal tune best``: the best trial of a sweep as a model bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from fetal_core import storage
from fetal_core.bundle import MODEL, Bundle
from fetal_core.errors import ConfigError, StaleInputError
from fetal_core.recipe import Recipe
from fetal_core.scoring import trained
from fetal_core.shards import ShardIndex
from fetal_core.trials import Trial, best_trial
from ray_jobs.cluster import check_capacity, connected, use_gpu
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.command import parse_args
from ray_jobs.console import say, training_view
from ray_jobs.ray_training import OnEvent, train_on_ray
from ray_jobs.sweep import Sweep
from ray_jobs.train import describe
from ray_jobs.training_inputs import Inputs
from ray_jobs.tune_report import trial_bundle
from ray_jobs.workspace import Prepared


def best_bundle(sweep_uri: str, out: str) -> Trial:
    """Write the best trial's model to ``out``.

    Raises:
        StorageError: not a sweep.
        ConfigError: no trial has ended with a model, or ``out`` is taken.
    """
    sweep = Sweep(storage.absolute(sweep_uri))
    _, trial, index = _best(sweep, out)
    trial_bundle(sweep, trial, index).save(out)
    return trial


def retrained_bundle(sweep_uri: str, out: str, cluster: ClusterConfig, on_event: OnEvent) -> Trial:
    """Train the best trial's settings on training and validation together; write that model.

    It trains as many epochs as the trial's best one, its schedule shortened to them, and keeps the
    last. Nothing is left to measure it on but the calibration and the test part; the validation
    figures in the bundle are those of the trial. ``OUT.training-...`` holds the run while it lasts,
    so that an interrupted one is continued.

    Raises:
        StorageError: not a sweep.
        ConfigError: no trial has ended with a model, or ``out`` is taken.
    """
    sweep = Sweep(storage.absolute(sweep_uri))
    prepared, trial, index = _best(sweep, out)
    recipe = _for_all_rows(sweep.recipe(trial), trial)
    # Of these settings alone: another trial may be the best by the time it goes on.
    work = f"{storage.absolute(out)}.training-{recipe.digest()[:8]}"
    with connected():
        check_capacity(cluster)
        on_event({"kind": "starting"})
        inputs = Inputs.load(prepared.shards_uri, index)
        both = {"train": [*inputs.blocks["train"], *inputs.blocks["val"]]}
        inputs = replace(inputs, blocks={**inputs.blocks, **both})
        result = train_on_ray(
            work, inputs, recipe.fit_config(), cluster, use_gpu(cluster), on_event
        )
    if result.checkpoint is None:
        raise RuntimeError(f"{work}: the run ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        model = trained(recipe.model, len(index.classes), index.mean, index.std, Path(folder))
    metrics = {"validation": dict(trial.best or {}), "retrained_on": {"parts": ["train", "val"]}}
    Bundle(describe(index, recipe, metrics), model).save(out)
    storage.remove(work)
    return trial


def _best(sweep: Sweep, out: str) -> tuple[Prepared, Trial, ShardIndex]:
    prepared, job = sweep.settings()
    if storage.is_file(storage.join(out, MODEL)):
        raise ConfigError(f"--out {out}: a model lies there already. Choose another folder.")
    trial = best_trial(sweep.trials(), job.search.metric)
    if trial is None:
        raise ConfigError(
            f"{sweep.uri}: no trial has a model. `fetal tune --resume {storage.name(sweep.uri)}` "
            "goes on with a sweep that was interrupted, and tells why trials failed."
        )
    _, _, index = prepared.load()
    if storage.read_json(sweep.settings_uri)["shards"] != index.fingerprint:
        raise StaleInputError(
            f"{prepared.uri}: holds other shards than the sweep was run on. Restore the cohort."
        )
    return prepared, trial, index


def _for_all_rows(recipe: Recipe, trial: Trial) -> Recipe:
    epochs = int((trial.best or {})["epoch"])
    changed = {"epochs": epochs, "select_by": "last", "early_stop_epochs": 0}
    changed["max_train_images"] = None
    warmup = min(recipe.schedule.warmup_epochs, epochs)
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update=changed),
            "schedule": recipe.schedule.model_copy(update={"warmup_epochs": warmup}),
        }
    )


@dataclass
class BestArgs:
    """Write the best trial's model bundle, as it is or trained again with the validation part."""

    sweep: tyro.conf.Positional[str]
    """Folder of the sweep, as `fetal tune` printed it."""
    out: str
    """Folder for the model bundle."""
    retrain: bool = False
    """Train its settings on training and validation together first."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def main(argv: Sequence[str]) -> None:
    """The command line of ``fetal tune best``."""
    args = parse_args(BestArgs, argv, "fetal tune best")
    if args.retrain:
        with training_view() as view:
            trial = retrained_bundle(args.sweep, args.out, args.cluster, view)
    else:
        trial = best_bundle(args.sweep, args.out)
    say(f"trial {trial.number}'s model: {storage.absolute(args.out)}")
