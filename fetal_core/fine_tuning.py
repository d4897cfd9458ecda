"""Training all weights: epochs of optimizer steps, validation, checkpoints, early stopping."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from torch import nn

from fetal_core.batches import BatchPlan
from fetal_core.checkpoint import (
    Progress,
    load_trainer,
    load_weights,
    save_trainer,
    save_weights,
)
from fetal_core.ema import Ema
from fetal_core.errors import NonFiniteLossError
from fetal_core.fit_config import FitConfig
from fetal_core.model import trainable_parameters
from fetal_core.optim import make_optimizer, make_schedule, scale_lr
from fetal_core.run_context import RunContext
from fetal_core.steps import StepEngine
from fetal_core.training_data import TrainingData

logger = logging.getLogger(__name__)


def batch_plan(config: FitConfig, data: TrainingData, context: RunContext) -> BatchPlan:
    """How the epochs of a run are cut into batches, as this rank sees them."""
    train = config.train
    rows, world_size = len(data.train), context.world_size
    return BatchPlan(rows, train.batch_size, train.micro_batch, world_size, train.seed)


class FineTuning:
    """State of a run that trains all weights."""

    def __init__(self, config: FitConfig, data: TrainingData, engine: StepEngine) -> None:
        train = config.train
        self.config, self.data, self.engine = config, data, engine
        self.model, self.context = engine.model, engine.context
        self.progress = Progress()
        self.plan = batch_plan(config, data, self.context)
        reference = config.optim.reference_batch or train.batch_size
        lr_scale = scale_lr(1.0, config.optim.name, train.batch_size, reference)
        self.optimizer = make_optimizer(self.model, config.optim, lr_scale)
        self.schedule = make_schedule(
            self.optimizer, config.schedule, train.epochs, self.plan.steps
        )
        self.ema = Ema(self.model, train.ema_decay) if train.ema_decay else None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or no better one is to be expected."""
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
