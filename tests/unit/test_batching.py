"""Which engine runs what: alone with all threads, or side by side with one each."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.batching import Batcher, Engines, Scored

PATIENCE_S = 20


class Lane:
    """Gives each image its mean; may hold its calls until as many run at once as a test wants."""

    def __init__(self, together: int = 1) -> None:
        self.batches: list[int] = []
        self._barrier = threading.Barrier(together)

    def logits(self, images_NHW: np.ndarray) -> np.ndarray:
        self._barrier.wait(PATIENCE_S)
        self.batches.append(len(images_NHW))
        means_N1 = images_NHW.reshape(len(images_NHW), -1).mean(axis=1, keepdims=True)
        return means_N1.astype(np.float32)


class Slow(Lane):
    """Tells that a call has begun, and holds it until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def logits(self, images_NHW: np.ndarray) -> np.ndarray:
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        return super().logits(images_NHW)


def image(value: int) -> np.ndarray:
    return np.full((4, 4), value, np.uint8)


def run(batcher: Batcher, work: Coroutine[Any, Any, Any]) -> Any:
    async def in_time() -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    try:
        return asyncio.run(in_time())
    finally:
        batcher.close()


def test_a_submission_that_is_alone_gets_all_threads() -> None:
    alone, lanes = Lane(), Lane()
    engines = Engines(alone, lanes, streams=2)
    batcher = Batcher(4, threads=2)

    async def one_after_the_other() -> None:
        for value in range(3):
            scored: Scored = await batcher.submit(engines, [image(value)])
            assert scored.logits_NK.tolist() == [[value]]

    run(batcher, one_after_the_other())
    assert (alone.batches, lanes.batches) == ([1, 1, 1], [])


def test_who_is_alone_scores_in_their_own_thread() -> None:
    class Named(Lane):
        def logits(self, images_NHW: np.ndarray) -> np.ndarray:
            threads.append(threading.get_ident())
            return super().logits(images_NHW)

    threads: list[int] = []
    sizes: list[int] = []
    batcher = Batcher(4, threads=2, on_batch=sizes.append)
    try:
        engines = Engines(Named(), Lane(), streams=2)
        scored = batcher.score_alone(engines, [image(7), image(9)])
        assert scored is not None
        assert scored.logits_NK.tolist() == [[7], [9]]
        assert scored.queue_s == 0
        assert threads == [threading.get_ident()]
        assert sizes == [2]
    finally:
        batcher.close()


def test_who_is_not_alone_is_told_to_wait_in_line() -> None:
    slow = Slow()
    more = [True]
    batcher = Batcher(4, threads=1, expects_more=lambda: more[0])
    engines = Engines(slow)

    async def crowd() -> None:
        assert batcher.score_alone(engines, [image(0)]) is None, "others are on their way"
        more[0] = False
        first = batcher.submit(engines, [image(1)])
        await asyncio.to_thread(slow.begun.wait, PATIENCE_S)
        assert batcher.score_alone(engines, [image(2)]) is None, "another call runs"
        slow.go.set()
        await first
        while batcher.score_alone(engines, [image(3)]) is None:
            await asyncio.sleep(0.01)

    run(batcher, crowd())
    assert batcher.score_alone(engines, [image(4)]) is None, "it has been closed"


def test_a_batcher_that_waits_for_more_images_makes_nobody_an_exception() -> None:
    batcher = Batcher(4, wait_s=0.01)
    assert batcher.score_alone(Engines(Lane()), [image(0)]) is None
    batcher.close()


def test_what_is_submitted_meanwhile_waits_for_who_is_alone() -> None:
    slow = Slow()
    engines = Engines(slow, Lane(), streams=2)
    batcher = Batcher(4, threads=2)

    async def two() -> None:
        first = asyncio.create_task(asyncio.to_thread(batcher.score_alone, engines, [image(1)]))
        await asyncio.to_thread(slow.begun.wait, PATIENCE_S)
        second = batcher.submit(engines, [image(2)])
        await asyncio.sleep(0.1)
        assert not second.done()
        slow.go.set()
        scored = await first
        assert scored is not None
        assert scored.logits_NK.item() == 1
        assert (await second).logits_NK.item() == 2

    run(batcher, two())


def test_many_run_side_by_side_in_equal_shares() -> None:
    alone, lanes = Lane(), Lane(together=2)
    engines = Engines(alone, lanes, streams=2)
    batcher = Batcher(4, threads=2, expects_more=lambda: True)

    async def at_once() -> None:
        found = await asyncio.gather(*(batcher.submit(engines, [image(i)]) for i in range(8)))
        assert [scored.logits_NK.item() for scored in found] == list(range(8))

    run(batcher, at_once())
    assert alone.batches == []
    assert sum(lanes.batches) == 8
    assert max(lanes.batches) <= 4


def test_nothing_begins_beside_a_call_that_has_all_threads() -> None:
    class Watched(Lane):
        def logits(self, images_NHW: np.ndarray) -> np.ndarray:
            assert not running, "another call runs"
            running.append(1)
            try:
                begun.set()
                assert go.wait(PATIENCE_S)
                return super().logits(images_NHW)
            finally:
                running.clear()

    running: list[int] = []
    begun, go = threading.Event(), threading.Event()
    engines = Engines(Watched(), Watched(), streams=1)
    batcher = Batcher(1, threads=3)

    async def crowd() -> None:
        first = batcher.submit(engines, [image(1)])
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        others = [batcher.submit(engines, [image(2)]) for _ in range(5)]
        assert batcher.waiting == 5
        go.set()
        await asyncio.gather(first, *others)

    run(batcher, crowd())


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=25),
    cancelled=st.sets(st.integers(0, 24)),
    models=st.lists(st.integers(0, 1), min_size=25, max_size=25),
    threads=st.integers(1, 3),
    max_batch=st.integers(3, 6),
)
def test_everybody_gets_their_own_answer_once(
    sizes: list[int], cancelled: set[int], models: list[int], threads: int, max_batch: int
) -> None:
    engines = [Engines(Lane(), Lane(), streams=threads) for _ in range(2)]
    batcher = Batcher(max_batch, threads=threads)

    async def crowd() -> None:
        futures = [
            batcher.submit(engines[models[number]], [image(number)] * size)
            for number, size in enumerate(sizes)
        ]
        for number in cancelled & set(range(len(sizes))):
            futures[number].cancel()
        for number, future in enumerate(futures):
            if not future.cancelled():
                assert (await future).logits_NK.tolist() == [[number]] * sizes[number]

    run(batcher, crowd())
    ran = [size for pair in engines for lane in (pair.alone, pair.lanes) for size in lane.batches]
    assert all(size <= max_batch for size in ran)
    kept = [size for number, size in enumerate(sizes) if number not in cancelled]
    assert sum(kept) <= sum(ran) <= sum(sizes)


def test_what_an_engine_raises_reaches_who_asked() -> None:
    class Broken(Lane):
        def logits(self, images_NHW: np.ndarray) -> np.ndarray:
            raise ArithmeticError("no")

    batcher = Batcher(2)

    async def ask() -> None:
        with pytest.raises(ArithmeticError):
            await batcher.submit(Engines(Broken()), [image(0)])
        good = await batcher.submit(Engines(Lane()), [image(7)])
        assert good.logits_NK.item() == 7

    run(batcher, ask())


def test_images_that_make_no_batch_end_no_thread() -> None:
    batcher = Batcher(2)

    async def ask() -> None:
        with pytest.raises(ValueError, match="shape"):
            await batcher.submit(Engines(Lane()), [image(0), np.zeros((3, 3), np.uint8)])
        good = await batcher.submit(Engines(Lane()), [image(7)])
        assert good.logits_NK.item() == 7
        assert batcher.alive

    run(batcher, ask())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_tells_when_a_thread_has_ended() -> None:
    class Fatal(Lane):
        def logits(self, images_NHW: np.ndarray) -> np.ndarray:
            raise SystemExit

    batcher = Batcher(1, threads=2)

    async def ask() -> None:
        assert batcher.alive
        batcher.submit(Engines(Fatal()), [image(0)])
        while batcher.alive:
            await asyncio.sleep(0.01)

    run(batcher, ask())


def test_threads_that_wait_keep_no_engine_alive() -> None:
    batcher = Batcher(1, threads=2)

    async def ask() -> weakref.ref[Lane]:
        lane = Lane()
        engines = Engines(lane, lane, streams=2)
        await asyncio.gather(*(batcher.submit(engines, [image(i)]) for i in range(6)))
        return weakref.ref(lane)

    async def exchange() -> None:
        lane = await ask()
        until = time.monotonic() + PATIENCE_S
        while lane() is not None:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
            gc.collect()

    run(batcher, exchange())
