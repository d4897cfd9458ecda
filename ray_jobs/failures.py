"""The project's own exceptions back out of Ray's."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from fetal_core.errors import FetalError


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
            seen += getattr(candidate, "worker_failures", {}).values()
    return None


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
