"""Messages of a stream: control messages read, results written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fetal_core.smoothing import Smoothed, SmoothingConfig, smooth
from ray_jobs.inference import FileAnswer
from ray_jobs.problems import ProblemError

UNSUPPORTED, POLICY, TOO_BIG, SERVER_FAULT, TRY_LATER = 1003, 1008, 1009, 1011, 1013
"""Codes for closing a WebSocket (RFC 6455, 7.4, and IANA's registry)."""


class ClosingError(Exception):
    """The server ends the stream."""

    def __init__(self, code: int, problem: ProblemError) -> None:
        super().__init__(problem.detail)
        self.code = code
        self.problem = problem


@dataclass(frozen=True)
class Frame:
    """A frame as it came in: its number in the stream, from 0, and what held at that time."""

    number: int
    data: bytes
    scan: int
    smoothing: SmoothingConfig


@dataclass(frozen=True)
class Shown:
    """The pooled answer after frame ``number`` of a scan, and the classes it is about."""

    number: int
    scan: int
    classes: tuple[str, ...]
    smoothed: Smoothed


def read_control(text: str | None) -> dict[str, Any]:
    """A text message as a JSON object; raises ClosingError if it is none."""
    try:
        message = json.loads(text or "")
    except (ValueError, RecursionError):
        raise not_control("it is not JSON") from None
    if not isinstance(message, dict):
        raise not_control("it is not a JSON object")
    return message


def not_control(reason: str) -> ClosingError:
    """The end of a stream whose client sends text that means nothing."""
    detail = f"A text message must be a control message: {reason}. Send images as binary messages."
    return ClosingError(UNSUPPORTED, ProblemError(415, "unsupported-message", detail))


def follow(before: Shown | None, frame: Frame, answer: FileAnswer) -> Shown | None:
    """Pool a frame with those before it in the same scan; one that shows nothing changes nothing.

    The frame also stands for those that were dropped or refused since the last one pooled.
    """
    classes = answer.model.info.classes
    if before is not None and (before.scan, before.classes) != (frame.scan, classes):
        before = None
    found = answer.frames[0]
    if found.decision == "reject":
        return before
    row_K = np.array([found.probabilities[name] for name in classes])
    passed = frame.number - before.number if before else 1
    smoothed = smooth(before.smoothed if before else None, row_K, frame.smoothing, passed)
    return Shown(frame.number, frame.scan, classes, smoothed)


def result(number: int, dropped: int, answer: FileAnswer, shown: Shown | None) -> dict[str, Any]:
    """The message about a frame, with the pooled answer where there is one."""
    found = asdict(answer.frames[0])
    model = {"name": answer.model.name, "version": answer.model.version}
    message = {"type": "result", **found, "frame": number, "dropped": dropped, "model": model}
    return message | {"smoothed": shown and _smoothed(shown, answer)}


def _smoothed(shown: Shown, answer: FileAnswer) -> dict[str, Any]:
    pooled, threshold = shown.smoothed, answer.model.info.threshold
    accepted = threshold is not None and pooled.confidence >= threshold
    rejected = answer.frames[0].decision == "reject"
    return {
        "plane": shown.classes[pooled.plane],
        "confidence": pooled.confidence,
        "probabilities": dict(zip(shown.classes, pooled.probabilities_K.tolist(), strict=True)),
        "decision": "reject" if rejected else "accept" if accepted else "review",
    }
