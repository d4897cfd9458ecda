"""Threads that keep nothing which has been cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from ray_jobs.workers import Workers

PATIENCE_S = 20


class Work:
    """Runs until it may end; counts how often it has been called."""

    def __init__(self) -> None:
        self.calls = 0
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        return self.calls


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.begun.wait, PATIENCE_S)


async def cancelled(workers: Workers) -> weakref.ref[Work]:
    """Work that was given while all threads were taken, and then cancelled."""
    work = Work()
    asking = asyncio.create_task(workers.run(work))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait({asking})
    await asyncio.sleep(0)  # the loop's last step holds the task
    assert asking.cancelled()
    assert work.calls == 0
    return weakref.ref(work)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_cancelled_while_it_waits_is_let_go_at_once(threads: int) -> None:
    async def ask() -> None:
        workers = Workers(threads, "test")
        held = [Work() for _ in range(threads)]
        running = [asyncio.create_task(workers.run(work)) for work in held]
        for work in held:
            await begun(work)
        gone = [await cancelled(workers) for _ in range(5)]
        # The thread of work that nobody waits for is taken too.
        running[0].cancel()
        await asyncio.wait({running[0]})
        gone += [await cancelled(workers) for _ in range(5)]
        gc.collect()
        assert [work() for work in gone] == [None] * 10
        for work in held:
            work.go.set()
        last = Work()
        last.go.set()
        assert await asyncio.wait_for(workers.run(last), PATIENCE_S) == 1
        workers.close()

    asyncio.run(ask())


def test_what_work_raises_reaches_who_asked_and_frees_its_thread() -> None:
    def fail() -> None:
        raise ArithmeticError("no")

    async def ask() -> None:
        workers = Workers(1, "test")
        for _ in range(3):
            with pytest.raises(ArithmeticError):
                await asyncio.wait_for(workers.run(fail), PATIENCE_S)
        workers.close()
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await asyncio.wait_for(workers.run(fail), PATIENCE_S)

    asyncio.run(ask())


def test_a_thread_that_outlasts_its_event_loop_is_free_for_the_next() -> None:
    workers, held = Workers(1, "test"), Work()

    async def leave() -> None:
        task = asyncio.create_task(workers.run(held))
        await begun(held)
        task.cancel()
        await asyncio.wait({task})

    async def again() -> int:
        work = Work()
        work.go.set()
        return await asyncio.wait_for(workers.run(work), PATIENCE_S)

    asyncio.run(leave())
    held.go.set()
    assert asyncio.run(again()) == 1
    workers.close()


def test_crowds_of_several_event_loops_all_get_their_turn() -> None:
    workers = Workers(2, "test")

    async def crowd(cancelled: set[int]) -> None:
        tasks = [asyncio.create_task(workers.run(lambda n=n: n)) for n in range(40)]  # type: ignore[misc]
        await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(found[n] == n for n in range(40) if n not in cancelled)

    for cancelled in (set(), {0, 1, 2, 7, 39}, set(range(5, 40))):
        asyncio.run(asyncio.wait_for(crowd(cancelled), PATIENCE_S))
    workers.close()
