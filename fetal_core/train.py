"""Training: epochs of optimizer steps, validation, checkpoints and early stopping."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fetal_core.batches import BatchPlan
from fetal_core.checkpoint import (
    Progress,
    load_trainer,
    load_weights,
    save_trainer,
    save_weights,
)
from fetal_core.config import digest
from fetal_core.ema import Ema
from fetal_core.errors import ConfigError, NonFiniteLossError
from fetal_core.fit_config import FitConfig
from fetal_core.losses import make_loss
from fetal_core.model import build, trainable_parameters
from fetal_core.optim import make_optimizer, make_schedule, scale_lr
from fetal_core.probe import Features, extract, train_head
from fetal_core.run_context import RunContext
from fetal_core.steps import StepEngine
from fetal_core.training_data import TrainingData

logger = logging.getLogger(__name__)


def fit(config: FitConfig, data: TrainingData, context: RunContext) -> Progress:
    """Train a classifier; weights and state reach the caller as checkpoints of ``context``.

    A run that finds a checkpoint continues it. Randomness is a function of (seed, epoch, step,
    row), so a resumed run gives the numbers of an uninterrupted one.

    Raises:
        ConfigError: the data cannot be trained on as configured.
        ModelError: the pretrained weights do not fit.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    data = limited(config, data)
    _check_parts(data)
    engine = _engine(config, data, context)
    with context.checkpoint() as folder:
        if config.train.mode == "probe":
            return _probe(config, data, engine)
        _check_batches(_plan(config, data, context), engine.model)
        if folder is None and config.train.mode == "probe_then_finetune":
            _train_head(config, data, engine, config.train.probe_epochs)
        run = _FineTuning(config, data, engine)
        if folder is not None:
            run.restore(folder)
    context.emit({"kind": "start", **run.describe()})
    while not run.finished:
        run.epoch()
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


def _plan(config: FitConfig, data: TrainingData, context: RunContext) -> BatchPlan:
    train = config.train
    rows, world_size = len(data.train), context.world_size
    return BatchPlan(rows, train.batch_size, train.micro_batch, world_size, train.seed)


def _check_batches(plan: BatchPlan, model: nn.Module) -> None:
    normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if plan.smallest_micro_batch < (2 if normalised else 1):
        raise ConfigError(
            f"train.batch_size = {plan.batch_size} and train.micro_batch = {plan.micro_batch} cut "
            f"{plan.rows} training images for {plan.world_size} workers into micro-batches of "
            f"{plan.smallest_micro_batch}: batch norm needs two images, any worker one. Take fewer "
            "workers or larger batches."
        )


class _FineTuning:
    """State of a run that trains all weights."""

    def __init__(self, config: FitConfig, data: TrainingData, engine: StepEngine) -> None:
        train = config.train
        self.config, self.data, self.engine = config, data, engine
        self.model, self.context = engine.model, engine.context
        self.progress = Progress()
        self.plan = _plan(config, data, self.context)
        reference = config.optim.reference_batch or train.batch_size
        lr_scale = scale_lr(1.0, config.optim.name, train.batch_size, reference)
        self.optimizer = make_optimizer(self.model, config.optim, lr_scale)
        self.schedule = make_schedule(
            self.optimizer, config.schedule, train.epochs, self.plan.steps
        )
        self.ema = Ema(self.model, train.ema_decay) if train.ema_decay else None

    @property
    def finished(self) -> bool:
        train, progress = self.config.train, self.progress
        stale = progress.epochs_done - progress.best_epoch
        stopped = 0 < train.early_stop_epochs <= stale
        return progress.epochs_done >= train.epochs or stopped

    def describe(self) -> dict[str, object]:
        """What the run will do, for its log."""
        return {
            "epochs": self.config.train.epochs,
            "epochs_done": self.progress.epochs_done,
            "steps": self.plan.steps,
            "history": self.progress.history,
            "precision": self.engine.precision,
            "parameters": trainable_parameters(self.model),
            "shares": self.plan.shares,
        }

    def epoch(self) -> None:
        """Train one epoch, validate, checkpoint."""
        epoch, started = self.progress.epochs_done, time.monotonic()
        trained = self.engine.train_epoch(
            self.config, self.data.train, self.plan, epoch, self.optimizer, self.schedule, self.ema
        )
        train_s = time.monotonic() - started
        self._average_buffers()
        if self.ema is None:
            validated = self.engine.evaluate(self.data.val)
        else:
            with self.ema.applied_to(self.model):
                validated = self.engine.evaluate(self.data.val)
        if not math.isfinite(validated.loss):
            raise NonFiniteLossError(
                f"the validation loss is not finite after epoch {epoch + 1}. "
                "Lower optim.lr, set optim.clip_norm or train in fp32."
            )
        record: dict[str, float] = {"epoch": epoch + 1, "lr": self.schedule.lr}
        self.schedule.step_epoch(validated.loss)
        record |= {f"train_{key}": value for key, value in trained.as_dict().items()}
        record |= {f"val_{key}": value for key, value in validated.as_dict().items()}
        record |= {"train_s": train_s, "epoch_s": time.monotonic() - started}
        record |= {"images_per_s": len(self.data.train) / train_s, "workers": self.plan.world_size}
        self._advance(record)

    def _advance(self, record: dict[str, float]) -> None:
        score, progress = self.config.train.score(record), self.progress
        progress.epochs_done += 1
        record["is_best"] = float(score > progress.best_score)
        if record["is_best"]:
            progress.best_score, progress.best_epoch = score, progress.epochs_done
        progress.history.append(record)
        self.context.emit({"kind": "epoch", **record})
        self.context.report(record, self.save)

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        state: dict[str, object] = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.engine.scaler.state_dict(),
            "progress": vars(self.progress),
        }
        if self.ema is None:
            save_weights(folder, self.model.state_dict())
        else:
            state |= {"model": self.model.state_dict(), "ema": self.ema.state_dict()}
            with self.ema.applied_to(self.model):
                save_weights(folder, self.model.state_dict())
        save_trainer(folder, state)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        state = load_trainer(folder)
        if self.ema is None:
            load_weights(folder, self.model)
        else:
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.engine.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        logger.info("resumed after epoch %d", self.progress.epochs_done)

    def _average_buffers(self) -> None:
        """Give all ranks the mean of their batch-norm statistics, averaged weights' included."""
        if self.context.world_size == 1:
            return
        states = [self.model.state_dict()]
        if self.ema is not None:
            states.append(self.ema.state_dict()["average"])
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                for state in states:
                    for key in (f"{name}.running_mean", f"{name}.running_var"):
                        mean = self.context.all_sum(state[key]) / self.context.world_size
                        state[key].copy_(mean)
