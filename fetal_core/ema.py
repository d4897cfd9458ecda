"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fetal_core.errors import ModelError


class Ema:
    """Moving average of all floating-point parameters and buffers; integer buffers are copied.

    The decay of update n (from 0) is min(decay, (1 + n) / (10 + n)), so that the first weights
    are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average = {name: value.clone() for name, value in _tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = []
        currents: list[Tensor] = []
        for name, current in _tensors(model).items():
            if current.is_floating_point():
                averages.append(self._average[name])
                currents.append(current)
            else:
                self._average[name].copy_(current)
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(averages, currents, self.updates)
        self.updates += 1

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give ``model`` the averaged weights inside the block, its own ones after it."""
        own = {name: value.clone() for name, value in _tensors(model).items()}
        _copy(self._average, model)
        try:
            yield
        finally:
            _copy(own, model)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates; tensors are shared, not copied."""
        return {"updates": self.updates, "average": dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of ``state_dict``.

        Raises:
            ModelError: it is the average of another model.
        """
        shapes = {name: value.shape for name, value in self._average.items()}
        if shapes != {name: value.shape for name, value in state["average"].items()}:
            raise ModelError(
                "the moving average in this checkpoint belongs to another model. "
                "Resume with the run's own configuration, or start a run under a new name."
            )
        for name, value in state["average"].items():
            self._average[name].copy_(value)
        self.updates = state["updates"]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}


@torch.no_grad()
def _copy(source: dict[str, Tensor], model: nn.Module) -> None:
    for name, value in _tensors(model).items():
        value.copy_(source[name])
