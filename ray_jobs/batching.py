"""One thread that runs engines on batches of whatever images are waiting."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]


class Runnable(Protocol):
    """The part of an engine that batches need."""

    def logits(self, images_NHW: Images) -> Logits:
        """Scores of shape (N, K) of preprocessed images."""
        ...


@dataclass(frozen=True)
class Scored:
    """The engine's answer to one submission.

    Attributes:
        logits_NK: float32, a row for each image.
        queue_s: from the submission to the start of its batch.
        engine_s: run time of its batch.
    """

    logits_NK: Logits
    queue_s: float
    engine_s: float


@dataclass(frozen=True)
class _Job:
    engine: Runnable
    images: Sequence[Images]
    future: asyncio.Future[Scored]
    loop: asyncio.AbstractEventLoop
    submitted_s: float


class Batcher:
    """Dynamic batching in front of a single engine thread.

    A batch is made of submissions for the same engine, up to ``max_batch`` images, in the order
    of their arrival. Submissions whose future has been cancelled are passed over.
    """

    def __init__(
        self, max_batch: int, wait_s: float = 0.0, on_batch: Callable[[int], None] | None = None
    ) -> None:
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._on_batch = on_batch or (lambda images: None)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Submissions that the engine has not begun, about."""
        return self._jobs.qsize()

    def submit(self, engine: Runnable, images: Sequence[Images]) -> asyncio.Future[Scored]:
        """Queue up to ``max_batch`` images ``(size_px, size_px)``; call it in an event loop.

        The future raises whatever the engine raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Scored] = loop.create_future()
        self._jobs.put(_Job(engine, images, future, loop, time.perf_counter()))
        return future

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        held: _Job | None = None
        while (first := held or self._jobs.get()) is not None:
            held = None
            if not first.future.cancelled():
                batch, held = self._collect(first)
                self._score(batch)

    def _collect(self, first: _Job) -> tuple[list[_Job], _Job | None]:
        """The batch that begins with ``first``, and the next job where it does not belong to it."""
        batch, images = [first], len(first.images)
        deadline_s = time.perf_counter() + self._wait_s
        while images < self._max_batch:
            try:
                wait_s = deadline_s - time.perf_counter()
                job = self._jobs.get(timeout=wait_s) if wait_s > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            if job.future.cancelled():
                continue
            if job.engine is not first.engine or images + len(job.images) > self._max_batch:
                return batch, job
            batch.append(job)
            images += len(job.images)
        return batch, None

    def _score(self, batch: list[_Job]) -> None:
        started_s = time.perf_counter()
        images_NHW = np.stack([image_HW for job in batch for image_HW in job.images])
        try:
            logits_NK = batch[0].engine.logits(images_NHW)
        except Exception as error:
            for job in batch:
                _deliver(job, error)
            return
        engine_s = time.perf_counter() - started_s
        self._on_batch(len(images_NHW))
        start = 0
        for job in batch:
            rows_NK = logits_NK[start : start + len(job.images)]
            start += len(job.images)
            _deliver(job, Scored(rows_NK, started_s - job.submitted_s, engine_s))


def _deliver(job: _Job, outcome: Scored | Exception) -> None:
    """Settle the job's future in its own event loop, unless that has ended."""

    def settle() -> None:
        if job.future.done():
            return
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)

    with suppress(RuntimeError):
        job.loop.call_soon_threadsafe(settle)
