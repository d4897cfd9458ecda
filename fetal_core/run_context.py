"""What a training loop needs from whatever runs it; a local run and Ray Train both provide it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fetal_core.checkpoint import WAITS_S, CheckpointStore

Event = dict[str, Any]
Request = Literal["checkpoint", "stop"]


class RunContext(Protocol):
    """Runs ``fit`` on one of ``world_size`` ranks."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the ranks in ``backward``."""

    def all_sum(self, value: Tensor) -> Tensor:
        """Elementwise sum over the ranks, on every rank."""

    def checkpoint(self) -> Any:
        """Context manager giving the folder of the latest checkpoint, or None on a fresh run."""

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None) -> None:
        """Record an epoch; all ranks call it equally often.

        Args:
            metrics: the epoch's numbers, equal on all ranks; ``is_best`` is 1 or 0.
            save: writes a checkpoint into the folder it is given, or None for no checkpoint.
        """

    def keep(self, epoch: int, step: int, save: Callable[[Path], None]) -> None:
        """Keep a checkpoint of a running epoch as the latest one; it is never the best.

        All ranks call it equally often.

        Args:
            epoch: the running one, from 1.
            step: of it that is done, from 1.
            save: writes a checkpoint into the folder it is given.
        """

    def asked(self) -> Request | None:
        """What whoever runs the training asks for: a checkpoint now, or also to stop after it.

        Called by all ranks after every step; equal on all of them.
        """

    def emit(self, event: Event) -> None:
        """Send a progress event (``start``, ``step``, ``epoch``); only rank 0's are kept."""


def epoch_name(epoch: float) -> str:
    """Name of an epoch's checkpoint in a ``CheckpointStore``."""
    return f"epoch-{epoch:04.0f}"


def step_name(epoch: int, step: int) -> str:
    """Name of a checkpoint after some steps of an epoch (from 1) in a ``CheckpointStore``."""
    return f"epoch-{epoch:04d}-step-{step:06d}"


class LocalContext:
    """One process; checkpoints in a folder, of which the latest and the best are kept."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        on_event: Callable[[Event], None] | None = None,
        on_report: Callable[[Mapping[str, float]], None] | None = None,
        waits_s: Sequence[float] = WAITS_S,
    ) -> None:
        """Checkpoints go to ``folder`` (local or S3), events to ``on_event``.

        ``on_report`` gets the numbers of every epoch once its checkpoint is safe; ``waits_s`` are
        those of the ``CheckpointStore``.
        """
        self.checkpoints = CheckpointStore(str(folder), waits_s)
        self.device = torch.device(device)
        self._on_event = on_event
        self._on_report = on_report

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def all_sum(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """The latest complete checkpoint, if any."""
        with self.checkpoints.open("latest") as folder:
            yield folder

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None) -> None:
        """Keep the checkpoint, then pass the numbers on."""
        if save is not None:
            name = epoch_name(metrics["epoch"])
            self.checkpoints.add(name, save, bool(metrics["is_best"]))
        if self._on_report is not None:
            self._on_report(metrics)

    def keep(self, epoch: int, step: int, save: Callable[[Path], None]) -> None:
        """Keep the checkpoint beside the best one."""
        self.checkpoints.add(step_name(epoch, step), save, is_best=False)

    def asked(self) -> Request | None:
        """Nothing."""
        return None

    def emit(self, event: Event) -> None:
        """Pass the event on."""
        if self._on_event is not None:
            self._on_event(event)
