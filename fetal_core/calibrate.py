"""Honest confidences: one temperature, and one threshold between acceptance and review."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax

from fetal_core.config import Config
from fetal_core.metrics import FloatArray, IntArray, nll_of_logits, reliability

_TEMPERATURES = (0.05, 20.0)
_STARTS = 2


class CalibrateConfig(Config):
    """How much error automatic acceptance may make, and how sure of that to be.

    Attributes:
        max_error: highest error rate among accepted images.
        confidence: probability that the chosen threshold keeps to it.
    """

    max_error: float = Field(default=0.05, gt=0, lt=1)
    confidence: float = Field(default=0.9, gt=0, lt=1)


@dataclass(frozen=True)
class Temperature:
    """The divisor of all logits, with the calibration part's figures before and after it.

    ``reason`` says why the value stayed at 1, or is None.
    """

    value: float
    nll_before: float | None
    nll_after: float | None
    ece_before: float | None
    ece_after: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Threshold:
    """The least confidence at which an image is accepted without review.

    Attributes:
        value: accept where confidence >= value; None sends every image to review.
        coverage: share of the calibration images accepted.
        error: error rate among them, None where there are none.
        error_upper: upper confidence bound of that rate.
        n: calibration images.
        reason: why nothing is accepted, or None.
    """

    value: float | None
    coverage: float
    error: float | None
    error_upper: float | None
    n: int
    reason: str | None = None


def apply_temperature(logits_NK: NDArray[np.floating], temperature: float) -> FloatArray:
    """Calibrated probabilities, float64 (N, K)."""
    probabilities: FloatArray = softmax(logits_NK.astype(np.float64) / temperature, axis=1)
    return probabilities


def fit_temperature(logits_NK: NDArray[np.floating], labels_N: IntArray) -> Temperature:
    """Temperature of least negative log-likelihood in [0.05, 20] (Guo et al. 2017).

    Stays at 1 without images, and without mistakes: there the likelihood only grows as the
    temperature falls to 0, and every confidence would become 1.
    """
    from scipy.optimize import minimize_scalar  # not at the start of every stage

    if len(labels_N) == 0:
        return Temperature(1.0, None, None, None, None, "the calibration part has no images")
    ece = reliability(labels_N, apply_temperature(logits_NK, 1.0)).ece
    nll = nll_of_logits(labels_N, logits_NK)
    if (logits_NK.argmax(axis=1) == labels_N).all():
        reason = "the calibration part has no mistake to learn a temperature from"
        return Temperature(1.0, nll, nll, ece, ece, reason)
    logits_NK = logits_NK.astype(np.float64)
    best = minimize_scalar(
        lambda log_t: nll_of_logits(labels_N, logits_NK / math.exp(log_t)),
        bounds=(math.log(_TEMPERATURES[0]), math.log(_TEMPERATURES[1])),
        method="bounded",
        options={"xatol": 1e-5},
    )
    value = math.exp(float(best.x))
    ece_after = reliability(labels_N, apply_temperature(logits_NK, value)).ece
    return Temperature(value, nll, float(best.fun), ece, ece_after)


def choose_threshold(
    probabilities_NK: FloatArray, labels_N: IntArray, config: CalibrateConfig
) -> Threshold:
    """A low threshold whose accepted images keep to the allowed error.

    Accepts more and more images, most confident first, while the Clopper-Pearson upper bound of
    their error rate stays within ``max_error``; begins anew half-way, at a shared level, so that
    one early mistake does not end the search. This is selective classification with guaranteed
    risk (Geifman & El-Yaniv 2017) by fixed-sequence testing (Angelopoulos et al. 2021, Learn then
    Test). The promise takes images as independent and error as falling with confidence: many
    images of few patients make it less sure.
    """
    n = len(labels_N)
    level = 1 - (1 - config.confidence) / _STARTS
    needed = math.ceil(math.log(1 - level) / math.log(1 - config.max_error))
    promise = f"an error rate of at most {config.max_error:g} at {config.confidence:g} confidence"
    if n < needed:
        reason = f"{n} calibration images are too few to promise {promise} (at least {needed})"
        return Threshold(None, 0.0, None, None, n, reason)
    confidence_N = probabilities_NK.max(axis=1)
    order_N = np.argsort(-confidence_N, kind="stable")
    wrong_N = (probabilities_NK.argmax(axis=1) != labels_N)[order_N]
    accepted_G = np.flatnonzero(np.r_[np.diff(confidence_N[order_N]) != 0, True]) + 1
    errors_G = np.cumsum(wrong_N)[accepted_G - 1]
    upper_G = upper_bound(errors_G, accepted_G, level)
    starts = np.linspace(needed, n, _STARTS, endpoint=False).astype(np.int64)
    group = _last_of_runs(upper_G <= config.max_error, np.searchsorted(accepted_G, starts))
    if group is None:
        reason = f"no threshold keeps to {promise} on {n} calibration images"
        return Threshold(None, 0.0, None, None, n, reason)
    accepted = int(accepted_G[group])
    return Threshold(
        value=float(confidence_N[order_N[accepted - 1]]),
        coverage=accepted / n,
        error=int(errors_G[group]) / accepted,
        error_upper=float(upper_G[group]),
        n=n,
    )


def upper_bound(errors_G: IntArray, trials_G: IntArray, confidence: float) -> FloatArray:
    """One-sided Clopper-Pearson bounds of error rates; 1 where every trial failed."""
    from scipy.stats import beta  # as above

    right_G = trials_G - errors_G
    bound_G: FloatArray = beta.ppf(confidence, errors_G + 1, np.maximum(right_G, 1))
    return np.where(right_G > 0, bound_G, 1.0)


def _last_of_runs(passes_G: NDArray[np.bool_], starts: IntArray) -> int | None:
    """The highest index reached from any start by going on while indices pass."""
    ends = [start + int(np.argmin(np.r_[passes_G[start:], False])) for start in starts.tolist()]
    reached = [end - 1 for start, end in zip(starts.tolist(), ends, strict=True) if end > start]
    return max(reached, default=None)
