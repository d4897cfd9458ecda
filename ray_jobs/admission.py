"""The bounded queue in front of decoding and engine."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ray_jobs.serving_errors import QueueFullError

_LONGEST_RETRY_S = 60
_RATE_WINDOW_S = 30.0


class Admission:
    """Counts the files that are under way, and turns away those beyond ``size``."""

    def __init__(self, size: int) -> None:
        self.pending = 0
        self._size = size
        self._finished_s: deque[float] = deque(maxlen=256)

    def check(self, files: int = 1) -> None:
        """Whether ``files`` more would be admitted now.

        Raises:
            QueueFullError: they would not.
        """
        if self.pending + files > self._size:
            raise QueueFullError(self._retry_after_s())

    @contextmanager
    def admitted(self, files: int, answered: int | None = None) -> Iterator[None]:
        """Count ``files`` while the block lasts; raises as ``check`` does.

        Args:
            files: to be counted.
            answered: how many of them are answered by the end of the block; all by default.
        """
        answered = files if answered is None else answered
        self.check(files)
        self.pending += files
        try:
            yield
            self._finished_s.extend([time.monotonic()] * answered)
        finally:
            self.pending -= files

    def _retry_after_s(self) -> int:
        """Time to answer what waits, at the rate of the last half minute."""
        now_s = time.monotonic()
        recent = [at_s for at_s in self._finished_s if now_s - at_s <= _RATE_WINDOW_S]
        if not recent:
            return 1
        wait_s = self.pending * (now_s - recent[0]) / len(recent)
        return max(1, min(math.ceil(wait_s), _LONGEST_RETRY_S))
