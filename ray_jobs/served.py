"""A model in service, and what it answers for a frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fetal_core.bundle import Bundle, BundleInfo, read_info
from fetal_core.calibrate import apply_temperature
from fetal_core.engine import Engine, TorchEngine, open_engine
from fetal_core.errors import FetalError, ModelError
from fetal_core.machine import cores
from ray_jobs.batching import Engines
from ray_jobs.serving_errors import NotReadyError

Decision = Literal["accept", "review", "reject"]


@dataclass(frozen=True)
class ServedModel:
    """A model that is loaded, warmed up and ready to answer.

    Attributes:
        engine: runs it, with all threads on one call.
        info: of its bundle.
        name: under which answers name it.
        version: of that name.
        uri: of its bundle.
        lanes: runs it with a thread for each of several calls at once, where the engine can.
        streams: number of those calls.
    """

    engine: Engine
    info: BundleInfo
    name: str
    version: str
    uri: str
    lanes: Engine | None = None
    streams: int = 1

    @cached_property
    def engines(self) -> Engines:
        """Both, for the batches."""
        return Engines(self.engine, self.lanes, self.streams if self.lanes is not None else 1)

    @cached_property
    def bundle(self) -> Bundle:
        """The torch model, whose gradients explain answers; loaded at first use unless it answers.

        Raises:
            NotReadyError: the files are not those any more that the engine was loaded from.
        """
        if isinstance(self.engine, TorchEngine):
            return self.engine.bundle
        try:
            found = Bundle.load(self.uri)
        except FetalError:
            found = None
        if found is None or found.info.hashes.get("weights") != self.info.hashes.get("weights"):
            raise NotReadyError(
                "The model's files have changed since the service loaded them, so its answers "
                "cannot be explained. Start it again, or serve a registered version."
            )
        return found


@dataclass(frozen=True)
class FrameAnswer:
    """The answer for one frame.

    Attributes:
        frame: number in the file, from 0.
        plane: the most probable class.
        confidence: its calibrated probability.
        probabilities: of all classes.
        decision: ``accept``, ``review`` (by a person), or ``reject`` where the image shows nothing.
        reason: for the decision.
    """

    frame: int
    plane: str
    confidence: float
    probabilities: dict[str, float]
    decision: Decision
    reason: str


def load_served(
    bundle_uri: str,
    name: str,
    version: str,
    engine: str = "auto",
    threads: int = 0,
    device: str = "cpu",
) -> ServedModel:
    """Open a bundle's engine and run it once.

    Args:
        bundle_uri: folder of the bundle.
        name: under which answers name the model.
        version: of that name.
        engine: as for :func:`fetal_core.engine.open_engine`.
        threads: of the engine; 0 leaves the choice to it.
        device: ``cpu``, or torch's name of a GPU.

    Raises:
        ModelError: the bundle or its engine cannot be used, or does not give finite scores.
        StorageError: a file cannot be read.
    """
    info = read_info(bundle_uri)
    opened, lanes = open_engine(bundle_uri, engine, device, threads), None
    if threads != 1 and opened.name != "torch":
        lanes = open_engine(bundle_uri, opened.name, threads=threads, hint="throughput")
    size_px = info.preprocess.size_px
    ramp_1HW = np.tile(np.linspace(0, 255, size_px).astype(np.uint8), (1, size_px, 1))
    for each in (opened, lanes or opened):
        logits_NK = each.logits(ramp_1HW)
        if logits_NK.shape != (1, len(info.classes)) or not np.isfinite(logits_NK).all():
            raise ModelError(
                f"{bundle_uri}: the model does not give one finite score for each of its "
                f"{len(info.classes)} classes. Train or export it again."
            )
    return ServedModel(opened, info, name, version, bundle_uri, lanes, threads or cores())


def answer_frames(
    info: BundleInfo,
    logits_NK: NDArray[np.float32],
    rejections: list[str | None],
    first_frame: int = 0,
) -> list[FrameAnswer]:
    """The answers for consecutive frames.

    Args:
        info: of the bundle that gave the scores.
        logits_NK: scores of the frames.
        rejections: for each frame why it shows nothing, or None.
        first_frame: number of the first of them.
    """
    answers = []
    rows_NK = apply_temperature(logits_NK, info.temperature)
    for frame, (row_K, rejection) in enumerate(zip(rows_NK, rejections, strict=True), first_frame):
        best = int(row_K.argmax())
        confidence = float(row_K[best])
        decision, reason = _decide(confidence, info.threshold, rejection)
        probabilities = dict(zip(info.classes, row_K.tolist(), strict=True))
        plane = info.classes[best]
        answers.append(FrameAnswer(frame, plane, confidence, probabilities, decision, reason))
    return answers


def _decide(
    confidence: float, threshold: float | None, rejection: str | None
) -> tuple[Decision, str]:
    if rejection is not None:
        return "reject", rejection
    if threshold is None:
        return "review", "the model has no threshold for acceptance: it was not calibrated"
    shown = f"the confidence of {confidence:.3f}"
    if confidence >= threshold:
        return "accept", f"{shown} reaches the threshold of {threshold:.3f}"
    return "review", f"{shown} is below the threshold of {threshold:.3f}"
