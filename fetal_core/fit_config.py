"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from fetal_core.augment import AugmentConfig
from fetal_core.config import Config
from fetal_core.losses import LossConfig
from fetal_core.model import ModelConfig
from fetal_core.optim import OptimConfig, ScheduleConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class TrainConfig(Config):
    """The course of a training run.

    Attributes:
        mode: ``finetune`` trains all weights; ``probe`` freezes the backbone, computes its
            features once and trains the head on them; ``probe_then_finetune`` does both in turn.
        epochs: passes over the training part (in ``probe`` mode, over its features).
        probe_epochs: epochs of the head before fine-tuning.
        batch_size: rows in an optimizer step, over all workers.
        micro_batch: rows in one forward pass at most; the rest accumulates. None: no limit.
        precision: ``auto`` takes bfloat16 where the processor computes in it, else float32.
        mixup_alpha: strength of mixup (Zhang et al. 2018); 0 is off.
        ema_decay: decay of an exponential moving average of the weights; 0 is off.
        checkpoint_steps: a checkpoint after every so many optimizer steps inside an epoch, besides
            that at its end; 0 is off.
        non_finite: what to do about a batch whose loss or gradient is NaN or infinite: ``stop`` the
            run before it does harm, or ``skip`` it, up to a tenth of an epoch's steps.
        early_stop_epochs: stop after so many epochs without a better validation score; 0 is off.
        select_by: the validation number that picks the best epoch; ``last`` keeps the last one.
        max_train_images: train on a random draw of so many images; None takes all.
        max_val_images: likewise for validation.
        seed: source of all randomness of the run.
    """

    mode: Literal["finetune", "probe", "probe_then_finetune"] = "finetune"
    epochs: int = Field(default=10, ge=1)
    probe_epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=32, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    precision: Precision = "auto"
    mixup_alpha: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    checkpoint_steps: int = Field(default=0, ge=0)
    non_finite: Literal["stop", "skip"] = "stop"
    early_stop_epochs: int = Field(default=0, ge=0)
    select_by: Literal["val_macro_f1", "val_accuracy", "val_loss", "last"] = "val_macro_f1"
    max_train_images: int | None = Field(default=None, ge=1)
    max_val_images: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)

    def score(self, record: Mapping[str, float]) -> float:
        """How good an epoch is by ``select_by``; larger is better."""
        if self.select_by == "last":
            return record["epoch"]
        value = record[self.select_by]
        return -value if self.select_by == "val_loss" else value


class FitConfig(Config):
    """Everything that determines a training run besides its data."""

    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check_together(self) -> FitConfig:
        if self.optim.name == "lbfgs" and self.train.mode != "probe":
            raise ValueError("optim.name = 'lbfgs' solves a whole problem at once: only for probe")
        return self
