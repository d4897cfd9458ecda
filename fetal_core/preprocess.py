"""The one deterministic transform that shards, evaluation and serving share."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from fetal_core.config import Config


class PreprocessConfig(Config):
    """How a decoded image becomes a network input.

    Attributes:
        size_px: side of the square result.
        fit: ``letterbox`` keeps the aspect ratio and pads with black; ``squash`` stretches both
            sides to ``size_px`` as the original recipe did (which distorts 959 x 661 by 1.45).
    """

    size_px: int = Field(default=224, ge=32, le=2048)
    fit: Literal["letterbox", "squash"] = "letterbox"


def preprocess(image_HW: NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.uint8]:
    """Resize a grey uint8 image to ``(size_px, size_px)`` by antialiased bilinear interpolation."""
    size = config.size_px
    height, width = image_HW.shape
    if (height, width) == (size, size):
        return image_HW
    if config.fit == "squash":
        return _resize(image_HW, size, size)
    scale = size / max(height, width)
    new_height = max(1, round(height * scale))
    new_width = max(1, round(width * scale))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas = np.zeros((size, size), np.uint8)
    canvas[top : top + new_height, left : left + new_width] = _resize(
        image_HW, new_height, new_width
    )
    return canvas


def _resize(image_HW: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    resized = Image.fromarray(image_HW).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)
