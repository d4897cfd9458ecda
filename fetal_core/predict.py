"""From the bytes of an image file to a plane with a calibrated confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fetal_core.bundle import Bundle
from fetal_core.calibrate import apply_temperature
from fetal_core.images import ImageLimits, decode_frames
from fetal_core.losses import scores
from fetal_core.preprocess import preprocess

Decision = Literal["accept", "review"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one frame.

    Attributes:
        plane: the most probable class.
        confidence: its calibrated probability.
        decision: ``accept`` where the confidence reaches the bundle's threshold, else ``review``;
            always ``review`` for a bundle that has not been calibrated.
        probabilities: of all classes.
        frame: number in the file, from 0.
    """

    plane: str
    confidence: float
    decision: Decision
    probabilities: dict[str, float]
    frame: int = 0


class Predictor:
    """Runs a bundle on images."""

    def __init__(self, bundle: Bundle, limits: ImageLimits | None = None) -> None:
        self.info = bundle.info
        self._model = bundle.model
        self._limits = limits or ImageLimits()

    @torch.inference_mode()
    def logits(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scores whose softmax gives the uncalibrated probabilities.

        Args:
            images_NHW: preprocessed, uint8, of the side that the bundle states.

        Returns:
            float32 of shape (N, K).
        """
        device = next(self._model.parameters()).device
        images = torch.from_numpy(images_NHW).to(device).unsqueeze(1).float().div_(255)
        out: Tensor = self._model(images.contiguous(memory_format=torch.channels_last))
        return scores(out, self.info.loss).cpu().numpy()

    def probabilities(self, logits_NK: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated probabilities of shape (N, K)."""
        return apply_temperature(logits_NK, self.info.temperature)

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Predictions for decoded grey uint8 images of any size."""
        if not images:
            return []
        ready = [preprocess(image_HW, self.info.preprocess) for image_HW in images]
        rows_NK = self.probabilities(self.logits(np.stack(ready)))
        return [self._prediction(row_K, frame) for frame, row_K in enumerate(rows_NK)]

    def predict_bytes(self, data: bytes) -> list[Prediction]:
        """Predictions for all frames of an image file.

        Raises:
            ImageError: not an image that this project reads, or beyond the limits.
        """
        predictions: list[Prediction] = []
        for image_HW in decode_frames(data, self._limits):
            found = self.predict([image_HW])[0]
            predictions.append(_with_frame(found, len(predictions)))
        return predictions

    def _prediction(self, row_K: NDArray[np.float64], frame: int) -> Prediction:
        best = int(row_K.argmax())
        confidence, threshold = float(row_K[best]), self.info.threshold
        accepted = threshold is not None and confidence >= threshold
        return Prediction(
            plane=self.info.classes[best],
            confidence=confidence,
            decision="accept" if accepted else "review",
            probabilities=dict(zip(self.info.classes, map(float, row_K), strict=True)),
            frame=frame,
        )


def _with_frame(prediction: Prediction, frame: int) -> Prediction:
    return Prediction(**(vars(prediction) | {"frame": frame}))
