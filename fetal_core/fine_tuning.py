"""Training all weights: epochs of optimizer steps, validation, checkpoints, early stopping."""

from __future__ import annotations

import logging
import math
import time
from functools import cached_property, partial
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
from fetal_core.model import trainable_parameters
from fetal_core.optim import make_optimizer, make_schedule, scale_lr
from fetal_core.run_context import RunContext
from fetal_core.steps import StepEngine
from fetal_core.totals import EpochPart, Totals
from fetal_core.training_data import TrainingData

logger = logging.getLogger(__name__)


def batch_plan(config: FitConfig, data: TrainingData, context: RunContext) -> BatchPlan:
    """How the epochs of a run are cut into batches, as this rank sees them."""
    train = config.train
    rows, world_size = len(data.train), context.world_size
    return BatchPlan(rows, train.batch_size, train.micro_batch, world_size, train.seed)


class FineTuning:
    """State of a run that trains all weights.

    Attributes:
        progress: how far it has come, in epochs.
        part: the running epoch.
        stopped: whether it was asked to end after a checkpoint, and did.
    """

    def __init__(self, config: FitConfig, data: TrainingData, engine: StepEngine) -> None:
        train = config.train
        self.config, self.data, self.engine = config, data, engine
        self.model, self.context = engine.model, engine.context
        self.progress = Progress()
        self.part = self._no_part()
        self.stopped = False
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
            "steps_done": self.part.steps,
            "steps": self.plan.steps,
            "history": self.progress.history,
            "precision": self.engine.precision,
            "parameters": trainable_parameters(self.model),
            "shares": self.plan.shares,
        }

    def epoch(self) -> None:
        """Train one epoch, or what is left of it, validate, checkpoint."""
        epoch, before_s = self.progress.epochs_done, self.part.train_s
        started = time.monotonic() - before_s
        self._train(started)
        if self.stopped:
            return
        trained = self.part.totals.reduced(self.context)
        train_s, skipped = self.part.train_s, self.part.skipped
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
        if self.config.train.non_finite == "skip":
            record["skipped_batches"] = skipped
        self._advance(record)

    def _train(self, started: float) -> None:
        """All steps that are left of the epoch, unless the run is asked to stop."""
        config, part = self.config, self.part
        every = config.train.checkpoint_steps
        steps = self.engine.train_epoch(
            config,
            self.data.train,
            self.plan,
            self.progress.epochs_done,
            self.optimizer,
            self.schedule,
            self.ema,
            part,
        )
        for _ in steps:
            part.train_s = time.monotonic() - started
            request = self.context.asked()
            # The end of the epoch has a checkpoint of its own.
            due = every and part.steps % every == 0 and part.steps < self.plan.steps
            if due or request is not None:
                self._keep()
            if request == "stop":
                self.stopped = True
                return

    def _keep(self) -> None:
        """Checkpoint inside an epoch."""
        started = time.monotonic()
        # Averages of averages: the end of the epoch does not see that they were taken here too.
        self._average_buffers()
        part = self.part.state_dict(self.context) | {"plan": self._cut}
        where = {"epoch": self.progress.epochs_done + 1, "step": self.part.steps}
        self.context.keep(**where, save=partial(self.save, part=part))
        self.context.emit({"kind": "kept", **where, "seconds": time.monotonic() - started})

    def _advance(self, record: dict[str, float]) -> None:
        score, progress = self.config.train.score(record), self.progress
        progress.epochs_done += 1
        record["is_best"] = float(score > progress.best_score)
        if record["is_best"]:
            progress.best_score, progress.best_epoch = score, progress.epochs_done
        progress.history.append(record)
        self.part = self._no_part()
        self.context.emit({"kind": "epoch", **record})
        self.context.report(record, self.save)

    def save(self, folder: Path, part: dict[str, Any] | None = None) -> None:
        """Write a checkpoint; ``part`` is the state of a running epoch."""
        state: dict[str, object] = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.engine.scaler.state_dict(),
            "precision": self.engine.precision,
            "progress": vars(self.progress),
            "part": part,
        }
        if self.ema is None:
            save_weights(folder, self.model.state_dict())
        else:
            state |= {"model": self.model.state_dict(), "ema": self.ema.state_dict()}
            with self.ema.applied_to(self.model):
                save_weights(folder, self.model.state_dict())
        save_trainer(folder, state)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigError: it was trained in another number format.
            ModelError: it is damaged, or of another network.
        """
        state = load_trainer(folder)
        precision = state.get("precision", self.engine.precision)
        if precision != self.engine.precision:
            raise ConfigError(
                f"this run was trained in {precision}, as its machine could, and would go on in "
                f"{self.engine.precision} here. Resume it on such a machine, or choose a new "
                "--name."
            )
        if self.ema is None:
            load_weights(folder, self.model)
        else:
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
        # A run that is forced on with other settings takes its momentum and decay from them.
        own = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        self.engine.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        if self.progress.best_epoch:
            best = self.progress.history[self.progress.best_epoch - 1]
            self.progress.best_score = self.config.train.score(best)
        part = state.get("part")
        if part is not None and part["plan"] == self._cut:
            self.part.load_state_dict(part, self.context.rank)
        steps = self.progress.epochs_done * self.plan.steps + self.part.steps
        self.schedule.load_state_dict(state["schedule"], steps)
        logger.info("resumed after epoch %d", self.progress.epochs_done)

    @cached_property
    def _cut(self) -> list[Any]:
        """What decides which images the batches of an epoch hold."""
        rows = digest([self.data.train.image_ids, self.data.train.labels_N.tolist()])
        return [rows, self.plan.batch_size, self.plan.seed]

    def _no_part(self) -> EpochPart:
        return EpochPart(Totals.zero(self.engine.classes, self.context.device))

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
