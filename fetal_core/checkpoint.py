"""Checkpoints of a training run: a folder with weights and the trainer's state."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fetal_core.errors import ModelError

WEIGHTS = "model.safetensors"
TRAINER = "trainer.pt"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epochs_done: finished epochs.
        best_score: best value so far of the selection metric, larger is better.
        best_epoch: epoch (from 1) of that value; 0 before the first.
        history: one record an epoch.
    """

    epochs_done: int = 0
    best_score: float = float("-inf")
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the weights to be evaluated (averaged ones where averaging is on)."""
    save_file({key: value.contiguous().cpu() for key, value in weights.items()}, folder / WEIGHTS)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load weights into a model of the same architecture.

    Raises:
        ModelError: no weights there, or of another architecture.
    """
    file = folder / WEIGHTS
    try:
        model.load_state_dict(load_file(file))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{file}: weights do not fit this model: {error}") from None


def save_trainer(folder: Path, state: dict[str, Any]) -> None:
    """Write everything besides the evaluated weights that a resumed run needs."""
    torch.save(state, folder / TRAINER)


def load_trainer(folder: Path) -> dict[str, Any]:
    """Read the trainer's state; nothing but tensors and plain values is unpickled.

    Raises:
        ModelError: no state there, or it is damaged.
    """
    file = folder / TRAINER
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{file}: cannot be read: {reason} Remove this checkpoint.") from None
    return state
