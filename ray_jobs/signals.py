"""How a command is ended from outside."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM; whatever Ctrl-C does not lose is not lost."""


def end_on_sigterm() -> None:
    """Let SIGTERM end the command as Ctrl-C does; Ray would abort it after three seconds."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
