"""Sums and counts of an epoch, of all of it or of what is done so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fetal_core.run_context import RunContext


@dataclass
class Totals:
    """Sums and counts of an epoch; divided once, after they have been added over the ranks."""

    loss_sum: Tensor
    confusion_KK: Tensor

    @classmethod
    def zero(cls, classes: int, device: torch.device) -> Totals:
        """Nothing counted yet."""
        return cls(
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros((classes, classes), dtype=torch.float64, device=device),
        )

    def copy(self) -> Totals:
        """The same numbers, apart."""
        return Totals(self.loss_sum.clone(), self.confusion_KK.clone())

    def add(self, losses_N: Tensor, logits_NK: Tensor, labels_N: Tensor) -> None:
        """Count some rows."""
        self.loss_sum += losses_N.detach().double().sum()
        classes = self.confusion_KK.shape[0]
        cells_N = labels_N * classes + logits_NK.detach().argmax(1)
        counts = torch.bincount(cells_N, minlength=classes * classes)
        self.confusion_KK += counts.view(classes, classes)

    def reduced(self, context: RunContext) -> Totals:
        """The totals over all ranks."""
        return Totals(context.all_sum(self.loss_sum), context.all_sum(self.confusion_KK))

    @property
    def loss(self) -> float:
        """Mean loss a row."""
        return float(self.loss_sum / self.confusion_KK.sum())

    def as_dict(self) -> dict[str, float]:
        """Mean loss, accuracy and macro-F1 over the classes that occur."""
        hits_K = self.confusion_KK.diag()
        true_K, predicted_K = self.confusion_KK.sum(1), self.confusion_KK.sum(0)
        f1_K = 2 * hits_K / (true_K + predicted_K).clamp(min=1)
        return {
            "loss": self.loss,
            "accuracy": float(hits_K.sum() / true_K.sum()),
            "macro_f1": float(f1_K[true_K > 0].mean()),
        }


@dataclass
class EpochPart:
    """What of the running epoch is done, as one rank counts it.

    Attributes:
        totals: of this rank's rows.
        steps: batches done.
        skipped: of these, how many were left out; the same on all ranks.
        train_s: seconds that they took.
    """

    totals: Totals
    steps: int = 0
    skipped: int = 0
    train_s: float = 0.0

    def state_dict(self, context: RunContext) -> dict[str, Any]:
        """The part over all ranks; all of them have to call it."""
        totals = self.totals.reduced(context)
        return {
            "loss_sum": totals.loss_sum,
            "confusion": totals.confusion_KK,
            "steps": self.steps,
            "skipped": self.skipped,
            "train_s": self.train_s,
        }

    def load_state_dict(self, state: dict[str, Any], rank: int) -> None:
        """Continue from a state of ``state_dict``, on any number of ranks."""
        if rank == 0:
            self.totals.loss_sum.copy_(state["loss_sum"])
            self.totals.confusion_KK.copy_(state["confusion"])
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.train_s = state["train_s"]
