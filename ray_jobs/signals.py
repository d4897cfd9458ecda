"""How a command is ended from outside."""

from __future__ import annotations

import os
import signal
import sys
import threading
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


def asked_to_end() -> bool:
    """Whether SIGTERM came since ``end_on_sigterm``."""
    return _asked.is_set()


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    _asked.set()
    end_within(_LIMIT_S, TERMINATED)
    # What waits in Ray turns any exception of a handler into this one.
    raise KeyboardInterrupt
