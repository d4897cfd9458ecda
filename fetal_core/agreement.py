"""How an engine compares with another: answers on a part, and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fetal_core.batches import evaluation_batch, evaluation_rows
from fetal_core.calibrate import apply_temperature
from fetal_core.engine import Engine
from fetal_core.rows import RowStore

_BULK = 8
_ROUNDS = 4


@dataclass(frozen=True)
class Agreement:
    """An engine against torch in float32 on the validation part.

    Attributes:
        images: of the validation part.
        agreement: share of them with the same most probable class.
        accuracy: of the engine.
        accuracy_fp32: of torch in float32.
        probability_difference_max: greatest absolute difference of a calibrated probability.
        probability_difference_mean: mean of the same over images and classes.
    """

    images: int
    agreement: float
    accuracy: float
    accuracy_fp32: float
    probability_difference_max: float
    probability_difference_mean: float

    def __str__(self) -> str:
        return (
            f"agreement {self.agreement:.2%}, accuracy {self.accuracy:.2%} "
            f"instead of {self.accuracy_fp32:.2%}, on {self.images:,} validation images"
        )


@dataclass(frozen=True)
class Speed:
    """Of one engine.

    Attributes:
        latency_ms: median time of one image.
        images_per_s: in batches of eight.
    """

    latency_ms: float
    images_per_s: float


def score(
    engine: Engine, store: RowStore, on_rows: Callable[[int, int], None]
) -> NDArray[np.float32]:
    """Scores (N, K) of all rows; ``on_rows`` is called with (done, total)."""
    found, total = [], len(store)
    for rows_N in evaluation_rows(total, 0, 1, evaluation_batch(store.size_px)):
        found.append(engine.logits(store.images(rows_N).squeeze(1).numpy()))
        on_rows(int(rows_N[-1]) + 1, total)
    return np.concatenate(found)


def compare(
    reference_NK: NDArray[np.float32],
    found_NK: NDArray[np.float32],
    store: RowStore,
    temperature: float,
) -> Agreement:
    """How an engine's scores compare with the reference's, both in the order of ``store``."""
    labels_N = store.labels_N.numpy()
    expected_N, answers_N = reference_NK.argmax(axis=1), found_NK.argmax(axis=1)
    difference_NK = np.abs(
        apply_temperature(reference_NK, temperature) - apply_temperature(found_NK, temperature)
    )
    return Agreement(
        images=len(labels_N),
        agreement=float((answers_N == expected_N).mean()),
        accuracy=float((answers_N == labels_N).mean()),
        accuracy_fp32=float((expected_N == labels_N).mean()),
        probability_difference_max=float(difference_NK.max()),
        probability_difference_mean=float(difference_NK.mean()),
    )


def measure_speeds(engines: Sequence[Engine], timing_s: float) -> list[Speed]:
    """Latency of single images and throughput of batches of eight.

    The engines take turns, so that other load on the machine falls on all of them.

    Args:
        engines: to measure.
        timing_s: for each engine and size of batch.
    """
    alone_s = _medians_s(engines, 1, timing_s)
    bulk_s = _medians_s(engines, _BULK, timing_s)
    return [Speed(1000 * one, _BULK / many) for one, many in zip(alone_s, bulk_s, strict=True)]


def _medians_s(engines: Sequence[Engine], images: int, timing_s: float) -> list[float]:
    """Median seconds of a call of each engine; the first of a turn is not counted."""
    durations: list[list[float]] = [[] for _ in engines]
    for _ in range(_ROUNDS):
        for engine, found in zip(engines, durations, strict=True):
            images_NHW = np.zeros((images, engine.size_px, engine.size_px), np.uint8)
            engine.logits(images_NHW)
            end_s = time.perf_counter() + timing_s / _ROUNDS
            start_s = time.perf_counter()
            while start_s < end_s:
                engine.logits(images_NHW)
                before_s, start_s = start_s, time.perf_counter()
                found.append(start_s - before_s)
    return [float(np.median(found)) for found in durations]
