"""What training reads, in Ray's object store: loaded before its workers start, or meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from fetal_core.errors import FetalError
from fetal_core.shards import ShardIndex
from fetal_core.training_data import TrainingData
from ray_jobs.blocks import load_blocks, row_store

_POLL_S = 0.1


@dataclass(frozen=True)
class Inputs:
    """The training and the validation part in Ray's object store; the other parts stay away.

    Attributes:
        blocks: references to Arrow tables by part.
        mean: mean of the training part's pixels, in [0, 1].
        std: standard deviation of the same.
    """

    blocks: Mapping[str, list[Any]]
    classes: tuple[str, ...]
    size_px: int
    mean: float
    std: float

    @classmethod
    def load(cls, shards_uri: str, index: ShardIndex) -> Inputs:
        """Read both parts with Ray Data.

        Raises:
            StorageError: shards are missing or damaged.
        """
        blocks = load_blocks(shards_uri, index, ("train", "val"))
        return cls(blocks, index.classes, index.preprocess.size_px, index.mean, index.std)

    def training_data(self) -> TrainingData:
        """The rows behind the references, without copying their pixels."""
        train, val = (row_store(self.blocks[part], self.size_px) for part in ("train", "val"))
        return TrainingData(train, val, self.classes, self.mean, self.std)


class InputsError(FetalError):
    """The inputs could not be loaded; the process that loaded them tells why."""


class Loading:
    """Loads inputs in a thread of this process, for workers that start meanwhile.

    Attributes:
        error: why there are none, once the workers have raised ``InputsError``.
    """

    def __init__(self, load: Callable[[], Inputs], mailbox: Any) -> None:
        """Begin; ``received`` with the same ``mailbox`` gets what ``load`` returns."""
        self.error: Exception | None = None
        self._load, self._mailbox = load, mailbox
        threading.Thread(target=self._run, name="inputs", daemon=True).start()

    def _run(self) -> None:
        reference = None
        try:
            # As a reference, so that the mailbox need not import what inputs consist of.
            reference = ray.put(self._load())
        except Exception as error:
            # Raised again where training is waited for.
            self.error = error
        # Training that was ended meanwhile has no mailbox any more.
        with suppress(RayError):
            ray.get(self._mailbox.deliver.remote([reference]))


def received(mailbox: Any) -> Inputs:
    """What another process's ``Loading`` has loaded; waits for it.

    Raises:
        InputsError: it could not be loaded.
    """
    while (delivery := ray.get(mailbox.delivered.remote())) is None:
        time.sleep(_POLL_S)
    (reference,) = delivery
    if reference is None:
        raise InputsError("the shards could not be loaded")
    inputs: Inputs = ray.get(reference)
    return inputs
