"""Threads that run engines on batches of whatever images are waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
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


@dataclass(frozen=True, eq=False)
class Engines:
    """One network, compiled for one call at a time and perhaps for several at once.

    Threads that share one call wait for each other, and with them the processor where others
    decode; calls with a thread each do not, but each takes longer. So the first is for a request
    that is alone, the second for many.

    Attributes:
        alone: all threads work on one call.
        lanes: takes ``streams`` calls at once; None where ``alone`` is to do all.
        streams: number of calls.
    """

    alone: Runnable
    lanes: Runnable | None = None
    streams: int = 1


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
    engines: Engines
    images: Sequence[Images]
    future: asyncio.Future[Scored]
    loop: asyncio.AbstractEventLoop
    submitted_s: float


class Batcher:
    """Dynamic batching in front of engine threads.

    A batch is made of submissions for the same engines, up to ``max_batch`` images, in the order
    of their arrival. Submissions whose future has been cancelled are passed over.

    Args:
        max_batch: images at a time.
        wait_s: for which a batch that is not full waits for more.
        threads: calls at a time, at most.
        expects_more: whether submissions are on their way.
        on_batch: told the size of each batch.
    """

    def __init__(
        self,
        max_batch: int,
        wait_s: float = 0.0,
        threads: int = 1,
        expects_more: Callable[[], bool] = lambda: False,
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._expects_more = expects_more
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._exclusive = self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"engine_{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Submissions that no engine has begun."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether all engine threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, engines: Engines, images: Sequence[Images]) -> asyncio.Future[Scored]:
        """Queue up to ``max_batch`` images ``(size_px, size_px)``; call it in an event loop.

        The future raises whatever the engine raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Scored] = loop.create_future()
        with self._changed:
            self._jobs.append(_Job(engines, images, future, loop, time.perf_counter()))
            self._changed.notify_all()
        return future

    def score_alone(self, engines: Engines, images: Sequence[Images]) -> Scored | None:
        """Score images in the calling thread, or give None where others want the engine as well.

        For a request that is alone: it is not handed from thread to thread. Raises whatever the
        engine raises.
        """
        with self._changed:
            if self._jobs or self._running or self._wait_s or self._closed or self._expects_more():
                return None
            self._running += 1
            self._exclusive = True
        started_s = time.perf_counter()
        try:
            logits_NK = engines.alone.logits(np.stack(images))
        finally:
            self._end()
        engine_s = time.perf_counter() - started_s
        self._on_batch(len(images))
        return Scored(logits_NK, 0.0, engine_s)

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while self._run_batch():
            pass

    def _run_batch(self) -> bool:
        """Wait for a batch and score it; False once there is nothing more to do.

        A function of its own, so that a thread that waits holds no model that has been exchanged.
        """
        with self._changed:
            self._changed.wait_for(self._may_begin)
            if not self._jobs:
                return False
            batch = self._collect()
            if not batch:
                return True
            engine = self._begin(batch[0].engines)
        try:
            self._score(engine, batch)
        finally:
            self._end()
        return True

    def _may_begin(self) -> bool:
        self._pass_over_cancelled()
        if not self._jobs:
            return self._closed
        return not self._exclusive and self._running < self._jobs[0].engines.streams

    def _begin(self, engines: Engines) -> Runnable:
        """The engine to run; nothing else begins before the end of one that is to be alone."""
        busy = self._running > 0 or bool(self._jobs) or self._expects_more()
        self._running += 1
        if engines.lanes is not None and busy:
            return engines.lanes
        self._exclusive = True
        return engines.alone

    def _end(self) -> None:
        """Let others begin."""
        with self._changed:
            self._running -= 1
            self._exclusive = False
            self._changed.notify_all()

    def _collect(self) -> list[_Job]:
        """The next batch: a fair share of what waits, so that no thread is left without work."""
        deadline_s = time.perf_counter() + self._wait_s
        while (left_s := deadline_s - time.perf_counter()) > 0 and not self._closed:
            if sum(len(job.images) for job in self._jobs) >= self._max_batch:
                break
            self._changed.wait(left_s)
        self._pass_over_cancelled()
        if not self._jobs:
            return []
        engines = self._jobs[0].engines
        share = -(-sum(len(job.images) for job in self._jobs) // engines.streams)
        batch: list[_Job] = []
        images = 0
        while self._jobs and self._jobs[0].engines is engines:
            images += len(self._jobs[0].images)
            if batch and images > min(share, self._max_batch):
                break
            batch.append(self._jobs.popleft())
            self._pass_over_cancelled()
        return batch

    def _pass_over_cancelled(self) -> None:
        while self._jobs and self._jobs[0].future.cancelled():
            self._jobs.popleft()

    def _score(self, engine: Runnable, batch: list[_Job]) -> None:
        started_s = time.perf_counter()
        try:
            images_NHW = np.stack([image_HW for job in batch for image_HW in job.images])
            logits_NK = engine.logits(images_NHW)
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
