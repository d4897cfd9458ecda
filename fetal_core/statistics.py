"""Moments of pixels from sums, so that parts of a cohort can be added up."""

from __future__ import annotations

import math


def moments(pixels: int, pixel_sum: int, pixel_sum_squares: int) -> tuple[float, float]:
    """Mean and standard deviation in [0, 1] of uint8 pixels from their sums; the latter > 0."""
    mean = pixel_sum / pixels
    variance = pixel_sum_squares / pixels - mean**2
    return mean / 255, max(math.sqrt(max(variance, 0.0)) / 255, 1e-3)
