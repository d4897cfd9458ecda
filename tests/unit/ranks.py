"""Runs ``fit`` on several processes with PyTorch's own process group, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from builders import overflow_on_white, spoilt_data, toy_data
from fetal_core.fit_config import FitConfig
from fetal_core.run_context import Event, LocalContext, Request
from fetal_core.train import fit


class GlooContext:
    """One of several ranks on this machine; rank 0 keeps the checkpoints."""

    def __init__(self, folder: Path, stop_after: int = 0, spoilt: bool = False) -> None:
        self.rank: int = dist.get_rank()
        self.world_size: int = dist.get_world_size()
        self.device = torch.device("cpu")
        self._local = LocalContext(folder)
        self._left = stop_after
        self._spoilt = spoilt

    def wrap(self, model: nn.Module) -> nn.Module:
        if self._spoilt:
            model.register_forward_hook(overflow_on_white)
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

    def all_sum(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        with self._local.checkpoint() as folder:
            dist.barrier()
            yield folder

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None) -> None:
        if self.rank == 0:
            self._local.report(metrics, save)
        dist.barrier()

    def keep(self, epoch: int, step: int, save: Callable[[Path], None]) -> None:
        if self.rank == 0:
            self._local.keep(epoch, step, save)
        dist.barrier()

    def asked(self) -> Request | None:
        self._left -= 1
        return "stop" if self._left == 0 else None

    def emit(self, event: Event) -> None:
        """Nobody listens."""


def fit_on_ranks(
    configs: Mapping[str, FitConfig],
    folder: Path,
    world_size: int,
    stop_after: int = 0,
    spoilt: bool = False,
) -> dict[str, list[list[dict[str, Any]]]]:
    """Train each configuration on ``toy_data(24, 9)``, on request not to the end.

    Args:
        configs: by name.
        folder: of the results.
        world_size: number of ranks.
        stop_after: so many steps; 0 trains to the end.
        spoilt: take ``spoilt_data`` and a network that overflows on one of its images.

    Returns:
        For each name, the history of every rank; checkpoints lie in ``folder / name``.
    """
    values = {name: config.model_dump() for name, config in configs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_rank, (world_size, str(folder), values, stop_after, spoilt), nprocs=world_size)
    return {
        name: [json.loads(_history(folder, name, rank).read_text()) for rank in range(world_size)]
        for name in configs
    }


def _rank(
    rank: int,
    world_size: int,
    folder: str,
    configs: dict[str, dict[str, Any]],
    stop_after: int,
    spoilt: bool,
) -> None:
    torch.set_num_threads(1)
    # A run that goes on meets in a file of its own.
    meeting = f"file://{folder}/rendezvous-{world_size}-{stop_after}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    for name, values in configs.items():
        context = GlooContext(Path(folder, name), stop_after, spoilt)
        data = spoilt_data(24, 9) if spoilt else toy_data(24, 9)
        progress = fit(FitConfig(**values), data, context)
        _history(Path(folder), name, rank).write_text(json.dumps(progress.history))
    dist.destroy_process_group()


def _history(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name}-{rank}.json"
