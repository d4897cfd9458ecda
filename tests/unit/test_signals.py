"""The first signal asks, the next one ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from ray_jobs.signals import asking_first


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[list[int]]:
    """SIGTERM as a command takes it, without ending the tests' process; what has come."""
    came: list[int] = []

    def terminate(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    yield came
    signal.signal(signal.SIGTERM, before)


def course(*signals: int, ready: bool = True, limit_s: float = 60.0, work_s: float = 0.0) -> str:
    """What happens in a block in which signals come before its work is done."""
    told = []
    try:
        with asking_first(lambda: ready, limit_s) as asked:
            for number in signals:
                os.kill(os.getpid(), number)
                told.append("asked" if asked.wait(5) else "not asked")
            time.sleep(work_s)
            told.append("done")
    except KeyboardInterrupt:
        told.append("ended")
    return ", ".join(told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks_and_takes_effect_after_the_block(
    number: int, sigterm: list[int]
) -> None:
    assert course(number) == "asked, done, ended"
    assert sigterm == [number] * (number == signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(number: int) -> None:
    assert course(signal.SIGINT, number) == "asked, ended"


def test_waiting_has_a_limit() -> None:
    assert course(signal.SIGINT, limit_s=0.2, work_s=30) == "asked, ended"


@pytest.mark.parametrize(("ready", "limit_s"), [(False, 60.0), (True, 0.0)])
def test_where_nothing_can_be_saved_the_first_signal_ends_at_once(
    ready: bool, limit_s: float
) -> None:
    assert course(signal.SIGINT, ready=ready, limit_s=limit_s) == "ended"


def test_a_block_that_nobody_disturbs_leaves_the_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with asking_first(lambda: True, 60) as asked:
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert not asked.is_set()


def test_an_error_of_the_block_is_told_rather_than_the_signal() -> None:
    def fail() -> None:
        with asking_first(lambda: True, 60):
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("worker")

    with pytest.raises(ValueError, match="worker"):
        fail()


def test_outside_the_main_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    found = []

    def block() -> None:
        with asking_first(lambda: True, 60) as asked:
            found.append((signal.getsignal(signal.SIGINT), asked.is_set()))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert found == [(before, False)]
