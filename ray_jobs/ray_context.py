"""``fetal_core``'s training loop on Ray Train."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConsistencyMode
from torch import Tensor, nn

from fetal_core import storage
from fetal_core.checkpoint import CheckpointStore, patiently
from fetal_core.errors import StorageError
from fetal_core.run_context import Event, Request, epoch_name, step_name

_STEP_EVENTS_S = 0.5
# The driver's mailbox answers within a millisecond.
_ANSWER_S = 0.1
_LOOK_FOR_DRAIN_S = 2.0
_COMMITTED = CheckpointConsistencyMode.COMMITTED
_NOTED_WITHIN_S = 10.0
# While a machine is about to be taken: no checkpoint for so long after one.
_DRAIN_CHECKPOINTS_S = 20.0


class RayContext:
    """A rank of a Ray Train run; see ``fetal_core.run_context.RunContext``."""

    def __init__(self, mailbox: Any) -> None:
        """Events of rank 0 go to ``mailbox``."""
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._mailbox = mailbox
        self._last_step_s = 0.0
        self._answer: Any = None
        self._stop = False
        self._next_look_s = time.monotonic() + _LOOK_FOR_DRAIN_S

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the ranks; buffers stay each rank's own."""
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=devices, broadcast_buffers=False
        )

    def all_sum(self, value: Tensor) -> Tensor:
        """Elementwise sum over the ranks."""
        if self.world_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """The latest checkpoint of this run's name, as a local folder."""
        latest = ray.train.get_checkpoint()
        if latest is None:
            yield None
        else:
            with latest.as_directory() as folder:
                yield Path(folder)

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None) -> None:
        """Report to Ray Train; rank 0 brings the checkpoint."""
        if save is None or self.rank != 0:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory(prefix="fetal-checkpoint-") as folder:
            patiently(lambda: save(Path(folder)), folder)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(dict(metrics), checkpoint=checkpoint, checkpoint_upload_fn=_persist)

    def keep(self, epoch: int, step: int, save: Callable[[Path], None]) -> None:
        """Report to Ray Train, which keeps the latest checkpoint beside the best one."""
        self.report({"epoch": epoch - 1, "step": step, "is_best": 0.0}, save)
        if self.rank == 0:
            # Ray takes note a moment later: a worker lost by then would have lost two intervals.
            ray.train.get_all_reported_checkpoints(_COMMITTED, timeout_s=_NOTED_WITHIN_S)

    def asked(self) -> Request | None:
        """Whether the driver asks to stop, or a machine of the run is about to be taken."""
        stop, look = self._asked_to_stop(), self._time_to_look()
        if self.world_size > 1:
            flags = torch.tensor([stop, look], dtype=torch.float32, device=self.device)
            stop, look = (self.all_sum(flags) > 0).tolist()
        if stop:
            return "stop"
        if not look:
            return None
        self._next_look_s = time.monotonic() + _LOOK_FOR_DRAIN_S
        if ray.train.get_preemption_info() is None:
            return None
        self.emit({"kind": "draining"})
        self._next_look_s = time.monotonic() + _DRAIN_CHECKPOINTS_S
        return "checkpoint"

    def _asked_to_stop(self) -> bool:
        """What the driver answers to the last event; asks nothing itself."""
        if self._answer is not None and ray.wait([self._answer], timeout=_ANSWER_S)[0]:
            self._stop = self._stop or ray.get(self._answer)
            self._answer = None
        return self._stop

    def _time_to_look(self) -> bool:
        """Rank 0's clock decides, since all ranks have to look together."""
        return self.rank == 0 and time.monotonic() > self._next_look_s

    def emit(self, event: Event) -> None:
        """Send rank 0's events to the driver, steps at most twice a second."""
        if self.rank != 0:
            return
        if event["kind"] == "step":
            if time.monotonic() - self._last_step_s < _STEP_EVENTS_S:
                return
            self._last_step_s = time.monotonic()
        self._answer = self._mailbox.put.remote(event)


def _persist(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Copy a checkpoint to where the run's lie; what is half copied is removed.

    Raises:
        CheckpointError: it cannot be written.
    """
    place = ray.train.get_context().get_storage()
    target: str = place.build_checkpoint_path_from_name(name)

    def copy() -> ray.train.Checkpoint:
        try:
            kept: ray.train.Checkpoint = place.persist_current_checkpoint(checkpoint, name)
            if isinstance(place.storage_filesystem, pafs.LocalFileSystem):
                storage.settle(Path(target))
            return kept
        except (OSError, StorageError):
            with suppress(OSError, StorageError):
                place.storage_filesystem.delete_dir(target)
            raise

    return patiently(copy, target)


class StoredRayContext(RayContext):
    """A rank whose checkpoints lie in a ``CheckpointStore``, which all machines must reach."""

    def __init__(self, mailbox: Any, uri: str) -> None:
        """Checkpoints go to ``uri``, events of rank 0 to ``mailbox``."""
        super().__init__(mailbox)
        self._store = CheckpointStore(uri)

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """The latest checkpoint, as a local folder."""
        with self._store.open("latest") as folder:
            yield folder

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None) -> None:
        """Rank 0 keeps the checkpoint and tells the driver, then all ranks meet."""
        if self.rank == 0 and save is not None:
            self._store.add(epoch_name(metrics["epoch"]), save, bool(metrics["is_best"]))
        self.emit({"kind": "report", **metrics})
        ray.train.report(dict(metrics))

    def keep(self, epoch: int, step: int, save: Callable[[Path], None]) -> None:
        """Rank 0 keeps the checkpoint, then all ranks meet."""
        if self.rank == 0:
            self._store.add(step_name(epoch, step), save, is_best=False)
        ray.train.report({"epoch": epoch - 1, "step": step, "is_best": 0.0})
