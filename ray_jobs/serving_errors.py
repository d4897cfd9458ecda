"""Why the service has no answer."""

from __future__ import annotations

from fetal_core.errors import FetalError, ImageError


class QueueFullError(FetalError):
    """As many files are waiting as the settings allow; try again after ``retry_after_s``."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"The queue is full. Try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class TooSlowError(FetalError):
    """The answer took longer than the settings allow."""


class NotReadyError(FetalError):
    """There is no model yet, or none any more, that the answer could come from."""


class RequestError(FetalError):
    """The request names a class or a frame that is not there, or a model without heat maps."""


class FileError(FetalError):
    """One of several files cannot be answered for; ``index`` counts from 0."""

    def __init__(self, index: int, cause: ImageError) -> None:
        super().__init__(f"File {index}: {cause}")
        self.index = index
        self.cause = cause
