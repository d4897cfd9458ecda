"""The parts of a cohort that training may see."""

from __future__ import annotations

from dataclasses import dataclass

from fetal_core.probe import Features
from fetal_core.rows import RowStore


@dataclass(frozen=True)
class TrainingData:
    """The rows a run learns from and selects on; the test part is not among them.

    Attributes:
        mean: mean of the training part's pixels, in [0, 1].
        std: standard deviation of the same.
        features: the frozen backbone's, of training and validation, where a sweep has computed
            them for all its trials.
    """

    train: RowStore
    val: RowStore
    classes: tuple[str, ...]
    mean: float
    std: float
    features: tuple[Features, Features] | None = None
