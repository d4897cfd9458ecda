"""Steady answers for a live scan: probabilities pooled over time, a plane that does not flicker.

Neighbouring frames show nearly the same anatomy, so their answers are pooled. The pool is the
logarithmic opinion pool (Genest & Zidek 1986, Statistical Science 1(1)), a weighted geometric mean,
with the weights of exponential smoothing (Brown 1959): frame ``i`` of ``n`` weighs
``alpha (1 - alpha)^(n - i)`` and the first ``(1 - alpha)^(n - 1)``. The weights add up to 1, so
that frames which repeat an answer do not make it surer, as multiplying their likelihoods would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import logsumexp

from fetal_core.config import Config

FLOOR = 1e-6
"""Least probability that enters the pool: what one frame rules out, later frames can bring back."""


class SmoothingConfig(Config):
    """How slowly the shown answer follows the frames.

    Attributes:
        alpha: weight of the newest frame; 1 shows each frame as it is.
        switch_odds: how many times as probable as the plane on show another must be to replace it;
            at 1 the most probable plane is always shown.
    """

    alpha: float = Field(default=0.3, gt=0, le=1)
    switch_odds: float = Field(default=2.0, ge=1, le=1000)


@dataclass(frozen=True)
class Smoothed:
    """The pooled answer after some frames.

    Attributes:
        probabilities_K: float64, adding up to 1.
        plane: index of the plane on show, which may be second to one not ``switch_odds`` ahead.
    """

    probabilities_K: NDArray[np.float64]
    plane: int

    @property
    def confidence(self) -> float:
        """Pooled probability of the plane on show."""
        return float(self.probabilities_K[self.plane])


def smooth(
    before: Smoothed | None,
    probabilities_K: NDArray[np.floating],
    config: SmoothingConfig,
    frames: int = 1,
) -> Smoothed:
    """The pooled answer once a frame with these calibrated probabilities has been seen.

    Args:
        before: the answer so far, or None at the start of a scan.
        probabilities_K: of the new frame, in [0, 1], with a sum of 1.
        config: the rate and the hysteresis.
        frames: how many frames the new one stands for: 1, and 1 more for each frame that was
            skipped before it. Pooling a frame as 2 equals pooling it twice.
    """
    new_K = _normalised(np.log(np.maximum(probabilities_K.astype(np.float64), FLOOR)))
    if before is None:
        return Smoothed(np.exp(new_K), int(new_K.argmax()))
    kept = (1 - config.alpha) ** frames
    pooled_K = np.exp(_normalised(kept * np.log(before.probabilities_K) + (1 - kept) * new_K))
    best = int(pooled_K.argmax())
    ahead = pooled_K[best] > config.switch_odds * pooled_K[before.plane]
    return Smoothed(pooled_K, best if ahead else before.plane)


def _normalised(log_K: NDArray[np.float64]) -> NDArray[np.float64]:
    normalised_K: NDArray[np.float64] = log_K - logsumexp(log_K)
    return normalised_K
