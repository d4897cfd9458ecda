"""No warnings from a thread, while those of all others are heard.

Decoders warn about what they read and quote it, such as a patient's name. The filters of warnings
belong to the whole process: a thread that changes them for a while takes the others' warnings away,
and brings its own back if two of them end in the wrong order. So there is one filter that stays,
and each warning asks it in which thread it is.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Here(threading.local):
    blocks = 0


class _Asked(type):
    """Makes every category of warnings a subclass, in threads that are silenced."""

    def __subclasscheck__(cls, category: type) -> bool:
        return _here.blocks > 0


class _AnyHere(Warning, metaclass=_Asked):
    """The category of the one filter."""


_here = _Here()
_installing = threading.Lock()


@contextmanager
def silenced() -> Iterator[None]:
    """No warnings from this thread in the block, whatever filters there are when it begins."""
    with _installing:
        # Others add filters in front, and take away all that were added since they began.
        first = warnings.filters[0] if warnings.filters else None
        if first is None or first[2] is not _AnyHere:
            warnings.simplefilter("ignore", _AnyHere)
    _here.blocks += 1
    try:
        yield
    finally:
        _here.blocks -= 1
