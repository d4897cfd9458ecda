"""Training: epochs of optimizer steps, validation, checkpoints and early stopping."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fetal_core.batches import BatchPlan
from fetal_core.checkpoint import Progress, save_trainer, save_weights
from fetal_core.config import digest
from fetal_core.errors import ConfigError
from fetal_core.fine_tuning import FineTuning, batch_plan
from fetal_core.fit_config import FitConfig
from fetal_core.losses import make_loss
from fetal_core.model import build, trainable_parameters
from fetal_core.probe import Features, extract, train_head
from fetal_core.run_context import RunContext
from fetal_core.steps import StepEngine
from fetal_core.training_data import TrainingData


def fit(config: FitConfig, data: TrainingData, context: RunContext) -> Progress:
    """Train a classifier; weights and state reach the caller as checkpoints of ``context``.

    A run that finds a checkpoint continues it, also inside an epoch. Randomness is a function of
    (seed, epoch, step, row), so a resumed run gives the numbers of an uninterrupted one. One that
    ``context`` asks to stop ends after a checkpoint, with the epochs done by then.

    Raises:
        ConfigError: the data cannot be trained on as configured.
        ModelError: the pretrained weights do not fit.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    data = limited(config, data)
    _check_parts(data)
    engine = _engine(config, data, context)
    engine.check_precision()
    with context.checkpoint() as folder:
        if config.train.mode == "probe":
            return _probe(config, data, engine)
        _check_batches(batch_plan(config, data, context), engine.model)
        if folder is None and config.train.mode == "probe_then_finetune":
            _train_head(config, data, engine, config.train.probe_epochs)
        run = FineTuning(config, data, engine)
        if folder is not None:
            run.restore(folder)
    context.emit({"kind": "start", **run.describe()})
    while not run.finished:
        run.epoch()
        if run.stopped:
            context.emit({"kind": "stopped", **run.describe()})
            break
    return run.progress


def backbone_features(
    config: FitConfig, data: TrainingData, context: RunContext
) -> tuple[Features, Features]:
    """What the frozen backbone makes of training and validation, for ``TrainingData.features``.

    Raises:
        ModelError: the pretrained weights do not fit.
    """
    data = limited(config, data)
    engine = _engine(config, data, context)
    return extract(engine, data.train), extract(engine, data.val)


def features_key(config: FitConfig) -> str:
    """Equal where ``backbone_features`` are."""
    train = config.train
    drawn = train.max_train_images, train.max_val_images
    random = config.model.weights == "none" or drawn != (None, None)
    network = config.model.model_copy(update={"dropout": 0.0}).digest()
    return digest([network, drawn, train.precision, train.seed if random else None])


def best_record(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The epoch whose weights are kept: the last that was the best so far."""
    return [record for record in history if record["is_best"]][-1]


def _engine(config: FitConfig, data: TrainingData, context: RunContext) -> StepEngine:
    classes, size_px = len(data.classes), data.train.size_px
    model = build(config.model, classes, data.mean, data.std, config.train.seed, size_px)
    loss = make_loss(config.loss, data.train.class_counts(classes), data.classes)
    device = context.device
    return StepEngine(model.to(device), loss.to(device), context, config.train.precision)


def limited(config: FitConfig, data: TrainingData) -> TrainingData:
    """The rows that the settings allow: a random draw where there are more."""
    train, seed = config.train, config.train.seed
    return replace(
        data,
        train=data.train.at_most(train.max_train_images, seed),
        val=data.val.at_most(train.max_val_images, seed),
    )


def _train_head(
    config: FitConfig, data: TrainingData, engine: StepEngine, epochs: int
) -> list[dict[str, float]]:
    started = time.monotonic()
    train, val = data.features or (extract(engine, data.train), extract(engine, data.val))
    features_s = time.monotonic() - started
    history = train_head(config, train, val, engine.model.head, epochs)
    engine.context.emit(
        {
            "kind": "probe",
            "features_s": features_s,
            "history": history,
            "parameters": trainable_parameters(engine.model.head),
        }
    )
    return history


def _probe(config: FitConfig, data: TrainingData, engine: StepEngine) -> Progress:
    """Train the head alone; the best epoch's model is the run's one checkpoint."""
    history = _train_head(config, data, engine, config.train.epochs)
    best = best_record(history)
    progress = Progress(len(history), config.train.score(best), int(best["epoch"]), history)

    def save(folder: Path) -> None:
        save_weights(folder, engine.model.state_dict())
        save_trainer(folder, {"progress": vars(progress)})

    engine.context.report(best, save)
    return progress


def _check_parts(data: TrainingData) -> None:
    if not len(data.train) or not len(data.val):
        raise ConfigError("the training or the validation part has no rows. Change `split`.")


def _check_batches(plan: BatchPlan, model: nn.Module) -> None:
    normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if plan.smallest_micro_batch < (2 if normalised else 1):
        raise ConfigError(
            f"train.batch_size = {plan.batch_size} and train.micro_batch = {plan.micro_batch} cut "
            f"{plan.rows} training images for {plan.world_size} workers into micro-batches of "
            f"{plan.smallest_micro_batch}: batch norm needs two images, any worker one. Take fewer "
            "workers or larger batches."
        )
