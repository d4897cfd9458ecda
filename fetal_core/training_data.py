"""The parts of a cohort that training may see."""

from __future__ import annotations

from dataclasses import dataclass

from fetal_core.rows import RowStore


@dataclass(frozen=True)
class TrainingData:
    """The rows a run learns from and selects on; the test part is not among them.

    Attributes:
        mean: mean of the training part's pixels, in [0, 1].
        std: standard deviation of the same.
    """

    train: RowStore
    val: RowStore
    classes: tuple[str, ...]
    mean: float
    std: float
