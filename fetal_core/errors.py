"""The project's exceptions: every message says what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One finding about an input.

    Attributes:
        kind: stable identifier in kebab-case, e.g. ``truncated-image``.
        where: file, image or key concerned.
        reason: what is wrong.
        remedy: what the user can do about it.
        row: 1-based line of the label table, header included, or None.
        severity: ``error`` stops a run, ``warning`` does not.
    """

    kind: str
    where: str
    reason: str
    remedy: str
    row: int | None = None
    severity: Severity = "error"

    def __str__(self) -> str:
        row = f", row {self.row}" if self.row is not None else ""
        return f"{self.where}{row}: {self.reason} [{self.kind}]. {self.remedy}"


class FetalError(Exception):
    """Base of all errors that a user can mend; the command line prints it without a traceback."""

    exit_code = 2


class ConfigError(FetalError):
    """A configuration file or flag is not valid."""


class StorageError(FetalError):
    """A path or object cannot be read or written."""


class StoreAwayError(StorageError):
    """An object store did not answer for as long as it is asked again."""


class CheckpointError(StorageError):
    """A checkpoint could not be written, however often it was tried; the previous one is whole."""


class ImageError(FetalError):
    """Bytes are not an image that this project reads; ``kind`` is the finding's identifier."""

    def __init__(self, kind: str, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}. {remedy}")
        self.kind = kind
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, str]]:
        return type(self), (self.kind, self.reason, self.remedy)


class StaleInputError(FetalError):
    """A file was made from inputs that have changed since."""


class ModelError(FetalError):
    """Weights, a checkpoint or a bundle do not fit the model asked for."""


class NonFiniteLossError(FetalError):
    """The loss became NaN or infinite; raised before the optimizer step."""


class DataError(FetalError):
    """Findings about the data, all of one run together."""

    def __init__(self, summary: str, problems: Iterable[Problem]) -> None:
        self.summary = summary
        self.problems = tuple(problems)
        shown = [f"  - {problem}" for problem in self.problems[:_SHOWN]]
        hidden = len(self.problems) - len(shown)
        if hidden > 0:
            shown.append(f"  ... and {hidden} more")
        super().__init__("\n".join([summary, *shown]))

    def __reduce__(self) -> tuple[type[DataError], tuple[str, tuple[Problem, ...]]]:
        return type(self), (self.summary, self.problems)
