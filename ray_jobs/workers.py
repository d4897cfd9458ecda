"""Threads for an event loop, without a queue of their own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Workers:
    """A number of threads; work waits for them in the event loop, first come, first served.

    A thread pool keeps what is queued in it, with all its data, until a thread comes to it, also
    when it has been cancelled. Here what is cancelled before it begins is gone at once. What has
    begun goes on to its end, and no other work takes its thread before.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._free = threads
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``, called in a thread; raises what it raises.

        Raises:
            RuntimeError: the threads have been closed.
        """
        await self._turn()
        try:
            working = self._pool.submit(work)
        except BaseException:
            self._release()
            raise
        working.add_done_callback(lambda _: self._release())
        return await asyncio.wrap_future(working)

    def close(self) -> None:
        """Take no more work and wait for the end of what has begun."""
        self._pool.shutdown(cancel_futures=True)

    async def _turn(self) -> None:
        """Wait for a thread; it is the caller's until ``_release``."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with self._lock, suppress(ValueError):
                self._waiting.remove(turn)
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        """Give a thread to who waits longest; called in any thread."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            turn = self._waiting.popleft()
        try:
            turn.get_loop().call_soon_threadsafe(self._give, turn)
        except RuntimeError:  # its event loop has ended
            self._release()

    def _give(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            self._release()
        else:
            turn.set_result(None)
