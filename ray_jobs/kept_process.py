"""A program that is started again whenever it ends by itself."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

_PAUSE_S = 0.5


class KeptProcess:
    """Keeps one process of a program alive until `stop`.

    A process may ask to be ended with the thread that began it: the watching thread lives as long.

    Args:
        name: for the log.
        start: begins a process of the program.
        first: the one that runs already.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], subprocess.Popen[bytes]],
        first: subprocess.Popen[bytes],
    ) -> None:
        self._name = name
        self._start = start
        self._stopping = threading.Event()
        self._process = first
        self._watcher = threading.Thread(target=self._watch, name=f"keep {name}", daemon=True)
        self._watcher.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The one that runs now."""
        return self._process

    def stop(self, number: signal.Signals, within_s: float) -> None:
        """Send the signal and wait for the end; kill what has not ended in time."""
        self._stopping.set()
        while self._watcher.is_alive():
            # The watcher may just have begun another one.
            self._process.send_signal(number)
            self._watcher.join(within_s)
            number = signal.SIGKILL

    def _watch(self) -> None:
        while True:
            code = self._process.wait()
            if self._stopping.wait(_PAUSE_S):
                return
            logger.error("%s ended with exit code %d: starting it again", self._name, code)
            self._process = self._start()
