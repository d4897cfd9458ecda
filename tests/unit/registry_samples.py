"""Small bundles and registries, and processes that use them at the same moment."""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from fetal_core import conditional, storage
from fetal_core.api_keys import KeyStore
from fetal_core.bundle import WEIGHTS, BundleInfo, write_info
from fetal_core.errors import FetalError
from fetal_core.preprocess import PreprocessConfig
from fetal_core.registry import Registry

NAME = "planes"
TIMEOUT_S = 120

Work = Callable[[str, Any], Any]

# Forked from one process that has imported torch: imports take longer than what is tested.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fetal_core.bundle", "fetal_core.registry"])


def write_bundle(uri: str, weights: bytes = b"weights", engine: bytes = b"<net/>") -> str:
    """A bundle whose weights are arbitrary bytes, with an exported engine."""
    info = BundleInfo(
        architecture="squeezenet1_1",
        classes=("abdomen", "brain"),
        preprocess=PreprocessConfig(size_px=32),
        loss="cross_entropy",
        mean=(0.5,),
        std=(0.2,),
        metrics={
            "validation": {"epoch": 3, "val_accuracy": 0.75, "val_macro_f1": 0.5},
            "test": {"accuracy": 0.875, "macro_f1": 0.625, "intervals": {"accuracy": [0.8, 0.9]}},
        },
        hashes={"weights": hashlib.sha256(weights).hexdigest()},
        git_commit="c0ffee",
    )
    storage.write_bytes(storage.join(uri, WEIGHTS), weights)
    storage.write_bytes(storage.join(uri, "engines", "openvino", "model.xml"), engine)
    write_info(uri, info)
    return uri


def filled(uri: str, source: Path, versions: int) -> Registry:
    """A registry with a model of so many versions."""
    registry = Registry(uri)
    for number in range(1, versions + 1):
        bundle = write_bundle(str(source / str(number)), weights=b"weights %d" % number)
        assert registry.register(bundle, NAME) == number
    return registry


class Crew:
    """Processes that run ``work(place, argument)`` at the same moment, one for each argument.

    What it returns is a process's answer; an error of the project's counts by its name.
    """

    def __init__(self, work: Work, place: str, arguments: Sequence[Any]) -> None:
        # Kept, because its semaphores go when it goes.
        self._gate = _CONTEXT.Barrier(len(arguments))
        self._answers: Queue[tuple[int, Any]] = _CONTEXT.Queue()
        self.processes = [
            _CONTEXT.Process(
                target=_act,
                args=(dict(os.environ), self._gate, self._answers, index, work, place, one),
            )
            for index, one in enumerate(arguments)
        ]
        for process in self.processes:
            process.start()

    def is_working(self) -> bool:
        """Whether some of them still work."""
        return any(process.is_alive() for process in self.processes)

    def answers(self) -> list[Any]:
        """What each has returned, once all have ended."""
        found = dict(self._answers.get(timeout=TIMEOUT_S) for _ in self.processes)
        for process in self.processes:
            process.join(TIMEOUT_S)
        return [found[index] for index in range(len(self.processes))]

    def kill(self) -> None:
        """End all of them where they are (SIGKILL)."""
        for process in self.processes:
            assert process.is_alive()
            process.kill()
            process.join(TIMEOUT_S)


def _act(
    environment: dict[str, str],
    gate: Barrier,
    answers: Queue[tuple[int, Any]],
    index: int,
    work: Work,
    place: str,
    argument: Any,
) -> None:
    os.environ.update(environment)
    gate.wait(TIMEOUT_S)
    try:
        answer = work(place, argument)
    except FetalError as error:
        answer = type(error).__name__
    answers.put((index, answer))


def register(place: str, bundle: str) -> int:
    """The number that a bundle gets."""
    return Registry(place).register(bundle, NAME)


def register_on_a_small_disk(place: str, bundle: str) -> int:
    """Files beyond half a MiB cannot be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
    return register(place, bundle)


def promote(place: str, versions: list[int]) -> None:
    """Promote one version after the other."""
    for version in versions:
        Registry(place).promote(NAME, version, "champion")


def roll_back(place: str, argument: None) -> int:
    """The version after a rollback."""
    return Registry(place).rollback(NAME, "champion").version


def count(uri: str, steps: int) -> None:
    """Add one to the number in a file, so many times."""
    for _ in range(steps):
        conditional.update(uri, lambda data: str(int(data or b"0") + 1).encode())


def hold_lock(file: str, argument: None) -> None:
    """Lock a file, say so by a file beside it, and never let it go."""
    with Path(file).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(f"{file}.held").touch()
        time.sleep(TIMEOUT_S)


def create_keys(uri: str, labels: list[str]) -> list[str]:
    """The keys created, in order."""
    return [KeyStore(uri).create(label)[1] for label in labels]
