"""The project's own exceptions back out of Ray's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import RayTaskError
from ray.train import UserCallback

from fetal_core.errors import CheckpointError, FetalError, StorageError


class WorkerDiedError(FetalError):
    """A worker process ended without an exception of its own."""


def user_error(error: BaseException) -> FetalError | None:
    """The project's exception inside one of Ray's, if that is the cause."""
    seen: list[BaseException | None] = [error]
    while seen:
        candidate = seen.pop()
        if isinstance(candidate, RayTaskError):
            # Ray derives a class from both; its text is a traceback.
            seen.append(candidate.cause)
        elif isinstance(candidate, FetalError):
            return candidate
        elif candidate is not None:
            seen += [candidate.__cause__, getattr(candidate, "_base_exc", None)]
            seen.append(getattr(candidate, "controller_failure", None))
            seen += getattr(candidate, "worker_failures", {}).values()
    return None


class FailureCallback(UserCallback):
    """Tells of lost workers, and ends a run where another attempt would fail likewise.

    Ray Train would try again after any error.
    """

    def __init__(self, on_lost: Callable[[], object]) -> None:
        """``on_lost`` is called where Ray may start the workers again."""
        self._on_lost = on_lost

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raise the project's own exception, if that is what a worker ended with."""
        for error in worker_exceptions.values():
            found = user_error(error)
            # A storage may answer at the next attempt; a checkpoint has had its attempts.
            again = isinstance(found, StorageError) and not isinstance(found, CheckpointError)
            if found is not None and not again:
                raise found
        self._on_lost()


def training_failure(error: Exception) -> FetalError:
    """What to tell a user whose training Ray has given up."""
    found = user_error(error)
    if found is not None:
        return found
    last = next(line for line in reversed(str(error).splitlines()) if line.strip())
    return WorkerDiedError(
        f"training stopped: {last.strip()}\nIf memory ran out, lower train.micro_batch or "
        "preprocess.size_px. The same command continues from the last epoch."
    )
