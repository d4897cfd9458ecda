"""A replica without Ray around it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from builders import toy_bundle
from ray_jobs.serve_app import Planes
from serving_samples import ConstantEngine, constant_model


class FatalEngine(ConstantEngine):
    """Ends the thread that calls it."""

    def logits(self, images_NHW: np.ndarray) -> np.ndarray:
        raise SystemExit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_replica_whose_engine_thread_has_ended_is_not_healthy(tmp_path: Path) -> None:
    toy_bundle().save(str(tmp_path))
    planes = Planes({"model": str(tmp_path), "engine": "torch", "threads": 1})
    inference = planes._inference

    async def end_a_thread() -> None:
        inference.swap(constant_model(FatalEngine()))
        size_px = inference.model.info.preprocess.size_px
        asking = asyncio.create_task(inference.logits(np.zeros((1, size_px, size_px), np.uint8)))
        while inference.alive:
            await asyncio.sleep(0.01)
        asking.cancel()

    try:
        planes.check_health()
        asyncio.run(end_a_thread())
        with pytest.raises(RuntimeError, match="engine"):
            planes.check_health()
    finally:
        inference.close()
