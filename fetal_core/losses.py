"""Losses on one-hot or soft labels, class weights and mixup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from fetal_core.config import Config
from fetal_core.errors import ConfigError

LossName = Literal["cross_entropy", "binary_cross_entropy"]


class LossConfig(Config):
    """The training loss.

    Attributes:
        name: categorical or binary cross-entropy, both on one-hot labels.
        label_smoothing: probability mass spread evenly over all classes (Szegedy et al. 2016).
        class_weights: ``none``, ``balanced`` (rows / (classes * rows of the class), from the
            training part) or one positive number for each class, in the order of the classes.
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"

    @field_validator("class_weights")
    @classmethod
    def _positive(cls, value: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if isinstance(value, tuple) and not all(0 < weight < float("inf") for weight in value):
            raise ValueError("class weights must be positive, finite numbers")
        return value


class Loss(nn.Module):
    """A loss for each row; ``probabilities`` holds the matching link function.

    Categorical cross-entropy weights each class's term by the class's weight. Binary
    cross-entropy is the mean over the classes, as in Keras, so about ``classes`` times smaller
    than the sum; a row's weight is that of its label (of its mixed labels, in proportion).
    Neither divides by the sum of the weights.
    """

    weights: Tensor | None

    def __init__(self, name: LossName, weights_K: Tensor | None = None) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("weights", weights_K)

    def forward(self, logits_NK: Tensor, targets_NK: Tensor) -> Tensor:
        """Losses of shape (N,), float32, unreduced.

        Args:
            logits_NK: any float dtype.
            targets_NK: probabilities that sum to 1 in each row, from ``one_hot`` or ``mixup``.
        """
        logits_NK, targets_NK = logits_NK.float(), targets_NK.float()
        if self.name == "cross_entropy":
            return functional.cross_entropy(
                logits_NK, targets_NK, weight=self.weights, reduction="none"
            )
        losses_N = functional.binary_cross_entropy_with_logits(
            logits_NK, targets_NK, reduction="none"
        ).mean(1)
        return losses_N if self.weights is None else losses_N * (targets_NK @ self.weights)


def make_loss(
    config: LossConfig, class_counts: Sequence[int], class_names: Sequence[str] | None = None
) -> Loss:
    """The loss for a training part with ``class_counts`` rows of each class.

    Raises:
        ConfigError: the number of weights is not that of the classes, or ``balanced`` meets
            classes without a row.
    """
    names = class_names or [f"class {index}" for index in range(len(class_counts))]
    if config.class_weights == "none":
        return Loss(config.name)
    if isinstance(config.class_weights, tuple):
        if len(config.class_weights) != len(class_counts):
            raise ConfigError(
                f"loss.class_weights: {len(config.class_weights)} weights for "
                f"{len(class_counts)} classes. Give one for each of: {', '.join(names)}."
            )
        return Loss(config.name, torch.tensor(config.class_weights, dtype=torch.float32))
    empty = [name for name, count in zip(names, class_counts, strict=True) if count == 0]
    if empty:
        raise ConfigError(
            f"loss.class_weights: 'balanced' needs training rows of every class, but there are "
            f'none of: {", ".join(empty)}. Use class_weights = "none", or mend the split.'
        )
    counts_K = torch.tensor(class_counts, dtype=torch.float32)
    return Loss(config.name, counts_K.sum() / (len(class_counts) * counts_K))


def one_hot(labels_N: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Float32 targets of shape (N, classes) from int64 labels, smoothed towards uniform."""
    targets_NK = functional.one_hot(labels_N, classes).float()
    return targets_NK * (1 - smoothing) + smoothing / classes if smoothing else targets_NK


def scores(logits_NK: Tensor, name: LossName) -> Tensor:
    """Numbers, float32, whose softmax over the classes gives the model's probabilities.

    The logits themselves for categorical cross-entropy; log-sigmoids for binary cross-entropy,
    whose softmax is the sigmoids divided by their sum, and safe where all of them underflow.
    """
    logits_NK = logits_NK.float()
    return logits_NK if name == "cross_entropy" else functional.logsigmoid(logits_NK)


def probabilities(logits_NK: Tensor, name: LossName) -> Tensor:
    """Class probabilities, float32, that sum to 1 in each row."""
    return scores(logits_NK, name).softmax(1)


def mixup(
    images_N1HW: Tensor, targets_NK: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Convex combinations of pairs of rows (Zhang et al. 2018, *mixup*).

    Args:
        images_N1HW: floats.
        targets_NK: one-hot or soft labels.
        alpha: one coefficient a batch is drawn from Beta(alpha, alpha); 0 returns the inputs.
        generator: on the CPU; draws the coefficient and the pairs.
    """
    if alpha == 0:
        return images_N1HW, targets_NK
    seed = int(torch.randint(2**62, (), generator=generator))
    fraction = float(np.random.default_rng(seed).beta(alpha, alpha))
    order_N = torch.randperm(len(images_N1HW), generator=generator).to(images_N1HW.device)
    return (
        torch.lerp(images_N1HW[order_N], images_N1HW, fraction),
        torch.lerp(targets_NK[order_N], targets_NK, fraction),
    )
