"""How a command is ended from outside."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
TERMINATED = 143
_LIMIT_S = 20
_asked = threading.Event()


def end_on_sigterm() -> None:
    """Let SIGTERM end the command as Ctrl-C does; Ray would abort it after three seconds."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def end_within(seconds: float, code: int) -> None:
    """End the process by then in any case.

    Where Ray's own processes were ended as well, as by a service manager, it would wait for them
    for a minute and then abort.
    """

    def end() -> None:
        sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


@contextmanager
def asking_first(ready: Callable[[], bool], limit_s: float) -> Iterator[threading.Event]:
    """Let the first Ctrl-C or SIGTERM set the event that the block is given, if ``ready`` then.

    The block is expected to end soon, and the signal takes effect after it. The next one, or
    ``limit_s`` seconds, end the block at once. Outside the main thread nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread() or limit_s == 0:
        yield asked
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    came: list[Callable[[], object]] = []
    timers: list[threading.Timer] = []

    def handle(number: int, frame: FrameType | None) -> None:
        handler = handlers[signal.Signals(number)]
        assert callable(handler)
        if came or not ready():
            handler(number, frame)
            return
        came.append(partial(handler, number, frame))
        timers.append(threading.Timer(limit_s, os.kill, (os.getpid(), number)))
        timers[0].daemon = True
        timers[0].start()
        asked.set()

    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, handle)
    try:
        yield asked
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for end in came:
        end()


def asked_to_end() -> bool:
    """Whether SIGTERM came since ``end_on_sigterm``."""
    return _asked.is_set()


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    _asked.set()
    end_within(_LIMIT_S, TERMINATED)
    # What waits in Ray turns any exception of a handler into this one.
    raise KeyboardInterrupt
