"""Everything that is said about a model on its untouched test part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fetal_core.bootstrap import Bootstrap, bootstrap
from fetal_core.config import Config
from fetal_core.errors import DataError, Problem
from fetal_core.metrics import (
    FloatArray,
    IntArray,
    Predictions,
    Reliability,
    Summary,
    confusion,
    reliability,
    roc_curve,
    summary,
)

_CURVE_POINTS = 400


class EvaluateConfig(Config):
    """How to evaluate.

    Attributes:
        resamples: draws of the bootstrap.
        seed: of the bootstrap.
        worst: number of mistakes to list.
    """

    resamples: int = Field(default=2000, ge=100)
    seed: int = Field(default=0, ge=0)
    worst: int = Field(default=12, ge=0)


@dataclass(frozen=True)
class Mistake:
    """An image whose most probable class is not its label."""

    image_id: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Selective:
    """What happens when only confident answers are accepted.

    Attributes:
        threshold: least accepted confidence; None sends every image to review.
        accepted: accepted images.
        coverage: their share.
        errors: mistakes among them.
        error: their rate, None where nothing is accepted.
        curve: (threshold, coverage, error rate) from the most confident image to all of them.
    """

    threshold: float | None
    accepted: int
    coverage: float
    errors: int
    error: float | None
    curve: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's figures on a part, all after temperature unless named otherwise.

    Attributes:
        classes: K names.
        images: number of images.
        patients: number of known patients, None where all are unknown.
        temperature: divisor of the logits.
        summary: point estimates.
        before: point estimates at temperature 1.
        bootstrap: intervals of ``summary``, of ``coverage`` and of ``accepted_error``.
        confusion_KK: counts, rows are labels.
        reliability: of the calibrated confidences.
        reliability_before: of the raw ones.
        selective: acceptance against review.
        roc: one curve (false positive rate, true positive rate) a class, None where undefined.
        mistakes: the most confident ones first.
    """

    classes: tuple[str, ...]
    images: int
    patients: int | None
    temperature: float
    summary: Summary
    before: Summary
    bootstrap: Bootstrap
    confusion_KK: IntArray
    reliability: Reliability
    reliability_before: Reliability
    selective: Selective
    roc: tuple[tuple[FloatArray, FloatArray] | None, ...]
    mistakes: tuple[Mistake, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        return {
            "images": self.images,
            "patients": self.patients,
            **figures_json(self.classes, self.summary, self.bootstrap),
            "confusion": self.confusion_KK.tolist(),
            "calibration": {
                "temperature": self.temperature,
                "ece_before": self.before.ece,
                "ece_after": self.summary.ece,
                "nll_before": self.before.nll,
                "nll_after": self.summary.nll,
            },
            "selective": asdict(self.selective),
            "worst_mistakes": [asdict(mistake) for mistake in self.mistakes],
        }


def figures_json(classes: tuple[str, ...], figures: Summary, result: Bootstrap) -> dict[str, Any]:
    """Point estimates and intervals, overall and by class, as plain values."""
    scalars = asdict(figures)
    per_class = scalars.pop("per_class")
    return {
        "classes": list(classes),
        **scalars,
        "intervals": {
            name: list(pair) for name, pair in result.intervals.items() if "/" not in name
        },
        "interval_method": {
            "method": "percentile bootstrap",
            "unit": result.unit,
            "clusters": result.clusters,
            "resamples": result.resamples,
            "level": result.level,
        },
        "per_class": {
            name: {**row, "intervals": _class_intervals(result, index)}
            for index, (name, row) in enumerate(zip(classes, per_class, strict=True))
        },
    }


def evaluate(
    predictions: Predictions,
    temperature: float,
    threshold: float | None,
    config: EvaluateConfig,
) -> Evaluation:
    """Evaluate a part.

    Args:
        predictions: raw logits and labels.
        temperature: fitted on the calibration part, 1 if it was not.
        threshold: least confidence to accept; None sends every image to review.
        config: how.

    Raises:
        DataError: there are no images.
    """
    if len(predictions) == 0:
        raise DataError("Nothing to evaluate.", [_empty_part()])
    labels_N = predictions.labels_N
    raw_NK = predictions.probabilities_NK()
    probabilities_NK = predictions.probabilities_NK(temperature)
    predicted_N = probabilities_NK.argmax(axis=1)
    wrong_N = predicted_N != labels_N
    accepted_N = _accepted(probabilities_NK, threshold)
    patients = {patient for patient in predictions.patients if patient is not None}
    return Evaluation(
        classes=predictions.classes,
        images=len(predictions),
        patients=len(patients) or None,
        temperature=temperature,
        summary=summary(labels_N, probabilities_NK),
        before=summary(labels_N, raw_NK),
        bootstrap=_bootstrap(predictions, probabilities_NK, accepted_N, wrong_N, config),
        confusion_KK=confusion(labels_N, predicted_N, len(predictions.classes)),
        reliability=reliability(labels_N, probabilities_NK),
        reliability_before=reliability(labels_N, raw_NK),
        selective=_selective(probabilities_NK.max(axis=1), wrong_N, accepted_N, threshold),
        roc=tuple(_roc(labels_N == k, probabilities_NK[:, k]) for k in range(raw_NK.shape[1])),
        mistakes=worst_mistakes(predictions, probabilities_NK, config.worst),
    )


def worst_mistakes(
    predictions: Predictions, probabilities_NK: FloatArray, count: int
) -> tuple[Mistake, ...]:
    """The ``count`` mistakes of highest confidence, ties by image id."""
    predicted_N = probabilities_NK.argmax(axis=1)
    mistakes = [
        Mistake(
            image_id=predictions.image_ids[row],
            label=predictions.classes[predictions.labels_N[row]],
            predicted=predictions.classes[predicted_N[row]],
            confidence=float(probabilities_NK[row, predicted_N[row]]),
        )
        for row in np.flatnonzero(predicted_N != predictions.labels_N)
    ]
    mistakes.sort(key=lambda mistake: (-mistake.confidence, mistake.image_id))
    return tuple(mistakes[:count])


def _class_intervals(result: Bootstrap, index: int) -> dict[str, list[float]]:
    return {
        name.removesuffix(f"/{index}"): list(pair)
        for name, pair in result.intervals.items()
        if name.endswith(f"/{index}")
    }


def _accepted(probabilities_NK: FloatArray, threshold: float | None) -> NDArray[np.bool_]:
    if threshold is None:
        return np.zeros(len(probabilities_NK), dtype=bool)
    accepted_N: NDArray[np.bool_] = probabilities_NK.max(axis=1) >= threshold
    return accepted_N


def _bootstrap(
    predictions: Predictions,
    probabilities_NK: FloatArray,
    accepted_N: NDArray[np.bool_],
    wrong_N: NDArray[np.bool_],
    config: EvaluateConfig,
) -> Bootstrap:
    return bootstrap(
        predictions.labels_N,
        probabilities_NK,
        predictions.patients,
        ratios={
            "coverage": (_float(accepted_N), np.ones(len(predictions))),
            "accepted_error": (_float(accepted_N & wrong_N), _float(accepted_N)),
        },
        resamples=config.resamples,
        seed=config.seed,
    )


def _float(flags_N: NDArray[np.bool_]) -> FloatArray:
    return flags_N.astype(np.float64)


def _selective(
    confidence_N: FloatArray,
    wrong_N: NDArray[np.bool_],
    accepted_N: NDArray[np.bool_],
    threshold: float | None,
) -> Selective:
    order_N = np.argsort(-confidence_N, kind="stable")
    sorted_N = confidence_N[order_N]
    last_G = np.flatnonzero(np.r_[sorted_N[1:] != sorted_N[:-1], True])
    last_G = last_G[_thinned(len(last_G))]
    errors_G = np.cumsum(wrong_N[order_N])[last_G]
    accepted, errors = int(accepted_N.sum()), int((accepted_N & wrong_N).sum())
    return Selective(
        threshold=threshold,
        accepted=accepted,
        coverage=accepted / len(wrong_N),
        errors=errors,
        error=errors / accepted if accepted else None,
        curve=tuple(
            (float(sorted_N[last]), (int(last) + 1) / len(wrong_N), int(wrong) / (int(last) + 1))
            for last, wrong in zip(last_G, errors_G, strict=True)
        ),
    )


def _roc(
    positive_N: NDArray[np.bool_], scores_N: FloatArray
) -> tuple[FloatArray, FloatArray] | None:
    if positive_N.all() or not positive_N.any():
        return None
    false_rate, true_rate = roc_curve(positive_N, scores_N)
    kept = _thinned(len(false_rate))
    return false_rate[kept], true_rate[kept]


def _thinned(count: int) -> IntArray:
    """Indices of at most ``_CURVE_POINTS`` of ``count`` points, both ends kept."""
    return np.unique(np.linspace(0, count - 1, min(count, _CURVE_POINTS)).round().astype(np.int64))


def _empty_part() -> Problem:
    return Problem(
        kind="empty-part",
        where="test part",
        reason="it holds no images",
        remedy="Give the split a larger share for this part, or check the table's own test column.",
    )
