"""What a training loop needs from whatever runs it; a local run and Ray Train both provide it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Event = dict[str, Any]


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

    def emit(self, event: Event) -> None:
        """Send a progress event (``start``, ``step``, ``epoch``); only rank 0's are kept."""


class LocalContext:
    """One process; checkpoints in a folder, of which the latest and the best are kept."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """Checkpoints go to ``folder``, events to ``on_event``."""
        self.folder = folder
        self.device = torch.device(device)
        self._on_event = on_event

    @property
    def latest(self) -> Path:
        """Folder of the last checkpoint."""
        return self.folder / "latest"

    @property
    def best(self) -> Path:
        """Folder of the best checkpoint."""
        return self.folder / "best"

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def all_sum(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """The latest complete checkpoint, if any."""
        yield self.latest if self.latest.is_dir() else None

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None) -> None:
        """Write a checkpoint beside the old one, then put it in its place."""
        if save is None:
            return
        _replace(self.latest, save)
        if metrics["is_best"]:
            _replace(self.best, lambda folder: _copy(self.latest, folder))

    def emit(self, event: Event) -> None:
        """Pass the event on."""
        if self._on_event is not None:
            self._on_event(event)


def _replace(target: Path, fill: Callable[[Path], None]) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
