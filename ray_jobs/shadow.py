"""A second model that gets a copy of the traffic and answers nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_jobs.batching import Batcher, Scored
from ray_jobs.served import ServedModel
from ray_jobs.serving_metrics import ServingMetrics


class Shadow:
    """Counts the frames for which another model would have named another plane.

    Frames are copied to it only while nothing waits for the engine, so it delays others by one
    batch at most; those left out are counted as ``skipped``.
    """

    def __init__(self, batcher: Batcher, metrics: ServingMetrics) -> None:
        self.model: ServedModel | None = None
        self._batcher = batcher
        self._frames = metrics.shadow

    def copy(
        self, images: Sequence[NDArray[np.uint8]], by: ServedModel, logits_NK: NDArray[np.float32]
    ) -> None:
        """Give the shadow what ``by`` has scored; call it in an event loop.

        Args:
            images: preprocessed for ``by``; a model with another preprocessing skips them.
            by: the model that has answered.
            logits_NK: its scores.
        """
        shadow = self.model
        if shadow is None:
            return
        if self._batcher.waiting or shadow.info.preprocess != by.info.preprocess:
            self._frames.labels("skipped").inc(len(images))
            return
        named = [by.info.classes[best] for best in logits_NK.argmax(axis=1).tolist()]

        def compare(scoring: asyncio.Future[Scored]) -> None:
            if scoring.cancelled():
                return
            if scoring.exception() is not None:
                self._frames.labels("failed").inc(len(images))
                return
            best_N = scoring.result().logits_NK.argmax(axis=1).tolist()
            for plane, best in zip(named, best_N, strict=True):
                agrees = shadow.info.classes[best] == plane
                self._frames.labels("agrees" if agrees else "differs").inc()

        self._batcher.submit(shadow.engines, images).add_done_callback(compare)
