"""Optimizers, parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lbfgs import LBFGS
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from fetal_core.config import Config
from fetal_core.errors import ConfigError

OptimName = Literal["sgd", "adam", "adamw", "lbfgs"]


# What a plateau has seen; the rest of torch's state are its settings.
_COURSE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class OptimConfig(Config):
    """The optimizer.

    Attributes:
        name: ``lbfgs`` is for full-batch training of a linear head only.
        lr: learning rate of the head; ``lbfgs`` finds its own steps and ignores it.
        momentum: of SGD.
        nesterov: Nesterov's momentum for SGD.
        weight_decay: on weight matrices and kernels; never on biases and norm layers.
        clip_norm: largest global gradient norm, or None.
        reference_batch: batch size that ``lr`` was found at: another ``train.batch_size`` scales it
            by ``scale_lr``. None takes ``lr`` as it is.
        backbone_lr_scale: learning rate of the backbone as a multiple of ``lr``.
    """

    name: OptimName = "sgd"
    lr: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    backbone_lr_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    reference_batch: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class ScheduleConfig(Config):
    """The course of the learning rate.

    Attributes:
        name: ``plateau`` and ``step`` are those of the original recipe.
        warmup_epochs: linear rise from 0, step by step (Goyal et al. 2017).
        factor: of ``plateau``: multiplies the rate when the validation loss stalls.
        patience: of ``plateau``: epochs without improvement that are tolerated; the rate falls
            after the next one, as in torch.
        step_epochs: of ``step``: epochs between two falls.
        step_gamma: of ``step``: multiplies the rate at each fall.
        min_lr_fraction: of ``cosine``: what is left of the rate at the end.
    """

    name: Literal["constant", "plateau", "step", "cosine"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    factor: float = Field(default=0.2, gt=0, lt=1)
    patience: int = Field(default=3, ge=0)
    step_epochs: int = Field(default=2, ge=1)
    step_gamma: float = Field(default=0.8, gt=0, le=1)
    min_lr_fraction: float = Field(default=0.01, ge=0, le=1)


class Schedule:
    """Sets the learning rates of an optimizer; made by ``make_schedule``.

    Call ``step_batch`` after every optimizer step and ``step_epoch`` after every validation.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        per_step: LambdaLR,
        plateau: ReduceLROnPlateau | None,
        warmup_steps: int,
    ) -> None:
        self._optimizer = optimizer
        self._per_step = per_step
        self._plateau = plateau
        self._warmup_steps = warmup_steps

    @property
    def lr(self) -> float:
        """Present learning rate of the first group, the head's."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step_batch(self) -> None:
        """Advance by one optimizer step: warm-up, cosine and step decay."""
        if self._plateau is None or self._warming_up:
            self._per_step.step()

    def step_epoch(self, val_loss: float) -> None:
        """Advance by one epoch: plateau, once the warm-up is over."""
        if self._plateau is not None and not self._warming_up:
            self._plateau.step(val_loss)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, the rates themselves included."""
        return {
            "lrs": [float(group["lr"]) for group in self._optimizer.param_groups],
            "base_lrs": list(self._per_step.base_lrs),
            "plateau": self._plateau.state_dict() if self._plateau else None,
        }

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """Continue from a state of ``state_dict``; sets the optimizer's rates.

        A plateau of other first rates goes on with rates that differ by the same factor.

        Args:
            state: of ``state_dict``.
            steps: optimizer steps so far, in this schedule's own epochs.
        """
        if self._plateau is None:
            self._per_step.last_epoch = steps
            factors = (factor(steps) for factor in self._per_step.lr_lambdas)
            rates = [lr * by for lr, by in zip(self._per_step.base_lrs, factors, strict=True)]
        else:
            self._per_step.last_epoch = min(steps, self._warmup_steps)
            self._plateau.load_state_dict({key: state["plateau"][key] for key in _COURSE})
            own = self._per_step.base_lrs
            bases = zip(state["lrs"], state.get("base_lrs", own), own, strict=True)
            rates = [lr if old == new else lr * new / old for lr, old, new in bases]
        for group, lr in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = float(lr)

    @property
    def _warming_up(self) -> bool:
        return self._per_step.last_epoch < self._warmup_steps


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay, the head's first.

    Parameters under ``backbone.`` learn at ``lr * backbone_lr_scale``, all others at ``lr``.
    Biases, norm layers and everything else with fewer than two dimensions do not decay. Each
    group holds ``params``, ``lr``, ``weight_decay`` and ``name``; empty groups are left out.
    """
    parameters: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if name.startswith("backbone.") else "head"
            parameters.setdefault((part, _decays(name, parameter)), []).append(parameter)
    return [
        {
            "params": parameters[part, decays],
            "lr": config.lr * (config.backbone_lr_scale if part == "backbone" else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
            "name": part if decays else f"{part}, no decay",
        }
        for part in ("head", "backbone")
        for decays in (True, False)
        if (part, decays) in parameters
    ]


def make_optimizer(model: nn.Module, config: OptimConfig, lr_scale: float = 1.0) -> Optimizer:
    """An optimizer over the trainable parameters, all rates multiplied by ``lr_scale``.

    L-BFGS (strong Wolfe line search) knows no weight decay: add ``l2_penalty`` to its loss.
    """
    groups = parameter_groups(model, config)
    for group in groups:
        group["lr"] *= lr_scale
    if config.name == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.name == "adam":
        return Adam(groups, lr=config.lr)
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr)
    parameters = [parameter for group in groups for parameter in group["params"]]
    return LBFGS(parameters, lr=1.0, max_iter=100, line_search_fn="strong_wolfe")


def l2_penalty(model: nn.Module, weight_decay: float) -> Tensor:
    """``weight_decay / 2`` times the squared norm of the parameters that decay, a scalar."""
    decaying = [
        parameter.square().sum()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _decays(name, parameter)
    ]
    return torch.stack(decaying).sum() * (weight_decay / 2)


def scale_lr(lr: float, name: OptimName, global_batch: int, reference_batch: int) -> float:
    """The learning rate for another batch size.

    Linear for SGD (Goyal et al. 2017), by the square root for Adam and AdamW (Malladi et al.
    2022), unchanged for L-BFGS.
    """
    ratio = global_batch / reference_batch
    power = {"sgd": 1.0, "adam": 0.5, "adamw": 0.5, "lbfgs": 0.0}[name]
    return float(lr * ratio**power)


def make_schedule(
    optimizer: Optimizer, config: ScheduleConfig, epochs: int, steps_per_epoch: int
) -> Schedule:
    """A schedule over ``epochs * steps_per_epoch`` optimizer steps; sets the first rate.

    Raises:
        ConfigError: the warm-up is longer than the training.
    """
    if config.warmup_epochs > epochs:
        raise ConfigError(
            f"schedule.warmup_epochs: {config.warmup_epochs:g} is more than the {epochs} epochs "
            "of the training. Shorten the warm-up or train longer."
        )
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    total_steps = epochs * steps_per_epoch

    def lr_factor(step: int) -> float:
        factor = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        if config.name == "step":
            factor *= config.step_gamma ** (step // steps_per_epoch // config.step_epochs)
        elif config.name == "cosine":
            done = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
            wave = (1 + math.cos(math.pi * min(1.0, done))) / 2
            factor *= config.min_lr_fraction + (1 - config.min_lr_fraction) * wave
        return factor

    plateau = None
    if config.name == "plateau":
        plateau = ReduceLROnPlateau(optimizer, factor=config.factor, patience=config.patience)
    return Schedule(optimizer, LambdaLR(optimizer, lr_factor), plateau, warmup_steps)


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and "bias" not in name.rsplit(".", 1)[-1]
