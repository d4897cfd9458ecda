"""Checkpoints of a training run: a folder with weights and the trainer's state."""

from __future__ import annotations

import logging
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fetal_core import storage
from fetal_core.errors import CheckpointError, ModelError, StorageError, StoreAwayError

WEIGHTS = "model.safetensors"
TRAINER = "trainer.pt"
_INDEX = "index.json"
# Between attempts to write a checkpoint: a full disk may be noticed and cleared meanwhile.
WAITS_S = (1.0, 4.0, 15.0)

_ANEW = "Choose a new --name, or remove the run's folder `checkpoints` to begin it anew."

T = TypeVar("T")
logger = logging.getLogger(__name__)


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
    """Write the weights to be evaluated (averaged ones where averaging is on).

    Raises:
        StorageError: they cannot be written.
    """
    file = folder / WEIGHTS
    try:
        save_file({key: value.contiguous().cpu() for key, value in weights.items()}, file)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{file}: cannot be written: {error}") from None


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
    """Write everything besides the evaluated weights that a resumed run needs.

    Raises:
        StorageError: it cannot be written.
    """
    file = folder / TRAINER
    try:
        # Through a file of our own: torch's says nothing of the reason when the disk is full.
        with file.open("wb") as target:
            torch.save(state, target)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{file}: cannot be written: {error}") from None


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
        raise ModelError(f"{file}: cannot be read: {reason.rstrip('.')}. {_ANEW}") from None
    return state


def patiently(write: Callable[[], T], where: str, waits_s: Sequence[float] = WAITS_S) -> T:
    """Write a checkpoint, after a failure again.

    Args:
        write: leaves nothing behind that counts when it fails.
        where: for messages.
        waits_s: before each further attempt.

    Raises:
        CheckpointError: no attempt succeeded.
        StoreAwayError: an object store did not answer; it has been waited for already.
    """
    for wait_s in (*waits_s, None):
        try:
            return write()
        except StoreAwayError:
            raise
        except (OSError, StorageError) as error:
            if wait_s is None:
                raise CheckpointError(_not_written(where, error, len(waits_s) + 1)) from None
            logger.warning("%s: no checkpoint: %s; again in %g s", where, error, wait_s)
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _not_written(where: str, error: Exception, attempts: int) -> str:
    return (
        f"{where}: the checkpoint cannot be written, tried {attempts} times: {error}. Make room or "
        "mend the access there; the one before it is whole, and the same command goes on from it."
    )


class CheckpointStore:
    """The latest and the best checkpoint of a run, in a folder or under an S3 prefix.

    A checkpoint counts once ``index.json`` names it, which is written last: a process that dies
    while it saves leaves the previous ones as they were.
    """

    def __init__(self, uri: str, waits_s: Sequence[float] = WAITS_S) -> None:
        """Checkpoints lie in folders below ``uri``; nothing is written yet.

        ``waits_s`` is how long to wait before each further attempt to write one.
        """
        self.uri = storage.absolute(uri)
        self._waits_s = waits_s

    def location(self, which: Literal["latest", "best"]) -> str | None:
        """Folder of a checkpoint, None before the first."""
        name = self._index().get(which)
        return None if name is None else storage.join(self.uri, name)

    def add(self, name: str, save: Callable[[Path], None], is_best: bool) -> None:
        """Keep what ``save`` writes into the folder it is given; drop what is no longer needed.

        Args:
            name: of this checkpoint; the same name again replaces it.
            save: writes the files.
            is_best: whether it is the best so far.

        Raises:
            StorageError: it cannot be written; the previous checkpoints stay.
        """
        patiently(lambda: self._add(name, save, is_best), self.uri, self._waits_s)

    def _add(self, name: str, save: Callable[[Path], None], is_best: bool) -> None:
        before = self._index()
        if storage.is_remote(self.uri):
            # Files in a bucket change one by one: never those of a checkpoint that counts.
            while name in before.values():
                name += "-again"
            self._upload(name, save)
        else:
            self._place(name, save)
        after = before | {"latest": name} | ({"best": name} if is_best else {})
        storage.write_json(storage.join(self.uri, _INDEX), after)
        # Also what a process left behind that died before it came here.
        depth = len(self.uri.split("/"))
        found = {uri.split("/")[depth] for uri in storage.list_files(self.uri)}
        for old in found - {_INDEX, *after.values()}:
            storage.remove(storage.join(self.uri, old))

    @contextmanager
    def open(self, which: Literal["latest", "best"]) -> Iterator[Path | None]:
        """A checkpoint as a local folder while the block lasts, None before the first."""
        location = self.location(which)
        if location is None or not storage.is_remote(location):
            yield None if location is None else Path(location)
            return
        with tempfile.TemporaryDirectory(prefix="fetal-checkpoint-") as folder:
            for uri in storage.list_files(location):
                (Path(folder) / storage.name(uri)).write_bytes(storage.read_bytes(uri))
            yield Path(folder)

    @contextmanager
    def best(self) -> Iterator[Path]:
        """The best checkpoint as a local folder.

        Raises:
            ModelError: there is none.
        """
        with self.open("best") as folder:
            if folder is None:
                raise ModelError(f"{self.uri}: holds no checkpoint yet. Let an epoch end first.")
            yield folder

    def _upload(self, name: str, save: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="fetal-checkpoint-") as folder:
            save(Path(folder))
            for file in sorted(Path(folder).iterdir()):
                storage.upload(file, storage.join(self.uri, name, file.name))

    def _place(self, name: str, save: Callable[[Path], None]) -> None:
        """Write beside the other checkpoints, so that nothing need be copied."""
        Path(self.uri).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.uri, prefix=".new-") as folder:
            written = Path(folder, name)
            written.mkdir()
            save(written)
            storage.settle(written)
            storage.remove(storage.join(self.uri, name))
            written.rename(Path(self.uri, name))
            storage.settle(Path(self.uri), contents=False)

    def _index(self) -> dict[str, str]:
        uri = storage.join(self.uri, _INDEX)
        found: dict[str, str] = storage.read_json(uri) if storage.is_file(uri) else {}
        return found
