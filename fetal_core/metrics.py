"""Figures of merit of a classifier; every one is a count or a sum, divided once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from fetal_core.errors import ModelError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ECE_BINS = 15


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about the images of one part.

    Attributes:
        image_ids: N distinct names.
        patients: N patients, None where unknown.
        labels_N: int64 class indices in [0, K).
        logits_NK: float32 scores before the softmax; log-probabilities serve as well.
        classes: K class names, in the order of the columns.
    """

    image_ids: tuple[str, ...]
    patients: tuple[str | None, ...]
    labels_N: IntArray
    logits_NK: NDArray[np.float32]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes, range of labels, distinct ids and finite scores.

        Raises:
            ValueError: the fields do not fit each other, or an image occurs twice.
            ModelError: a score is NaN or infinite; names the images.
        """
        rows, width = len(self.image_ids), len(self.classes)
        if len(self.patients) != rows or self.labels_N.shape != (rows,):
            raise ValueError(
                f"{rows} ids, {len(self.patients)} patients and labels of shape "
                f"{self.labels_N.shape} do not fit each other"
            )
        if self.logits_NK.shape != (rows, width):
            raise ValueError(f"logits are {self.logits_NK.shape}, expected {(rows, width)}")
        if rows and (self.labels_N.min() < 0 or self.labels_N.max() >= width):
            raise ValueError(f"labels must lie in 0..{width - 1}")
        if len(set(self.image_ids)) != rows:
            raise ValueError("an image was evaluated more than once")
        bad_N = ~np.isfinite(self.logits_NK).all(axis=1)
        if bad_N.any():
            names = [self.image_ids[row] for row in np.flatnonzero(bad_N)[:5]]
            raise ModelError(
                f"The model's output is not finite for {int(bad_N.sum())} of {rows} images "
                f"({', '.join(names)}). The weights have diverged: train again with a lower rate."
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def probabilities_NK(self, temperature: float = 1.0) -> FloatArray:
        """Softmax of the logits divided by ``temperature`` (> 0): float64, rows sum to 1."""
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        probabilities: FloatArray = softmax(self.logits_NK.astype(np.float64) / temperature, axis=1)
        return probabilities


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest; rates in [0, 1], None where the part cannot tell.

    A class without images has no rates. One that is never predicted has precision 0.
    AUROC needs images of the class and images of another.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    support: int


@dataclass(frozen=True)
class Summary:
    """Figures over all classes; the macro means run over the classes that occur in the labels.

    Attributes:
        accuracy: share of images whose most probable class is the label.
        balanced_accuracy: mean recall.
        macro_f1: mean F1.
        auroc_macro: mean one-versus-rest area, or None with a single class.
        nll: mean negative log-likelihood in nats.
        brier: mean squared distance to the one-hot label, in [0, 2] (Brier 1950).
        ece: expected calibration error, see :func:`reliability`.
        per_class: K entries in the order of the classes.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    auroc_macro: float | None
    nll: float
    brier: float
    ece: float
    per_class: tuple[ClassMetrics, ...]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy in equal-width bins; NaN in bins without images."""

    count_B: IntArray
    confidence_B: FloatArray
    accuracy_B: FloatArray

    @property
    def ece(self) -> float:
        """Mean gap between confidence and accuracy, weighted by images, in [0, 1]."""
        gap_B = np.abs(self.confidence_B - self.accuracy_B)
        return float(np.nansum(gap_B * self.count_B) / max(int(self.count_B.sum()), 1))


def confusion(labels_N: IntArray, predicted_N: IntArray, classes: int) -> IntArray:
    """Counts, int64 (K, K): rows are labels, columns are predictions."""
    cells = np.bincount(labels_N * classes + predicted_N, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def class_rates(
    confusion_RKK: IntArray | FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision, recall and F1, each (..., K), of confusion matrices (..., K, K).

    NaN for a class without images; precision 0 for one that is never predicted.
    """
    hits_RK = np.diagonal(confusion_RKK, axis1=-2, axis2=-1).astype(np.float64)
    support_RK = confusion_RKK.sum(axis=-1)
    predicted_RK = confusion_RKK.sum(axis=-2)
    absent_RK = np.where(support_RK > 0, 0.0, np.nan)
    precision_RK = hits_RK / np.maximum(predicted_RK, 1) + absent_RK
    recall_RK = hits_RK / np.maximum(support_RK, 1) + absent_RK
    f1_RK = 2 * hits_RK / np.maximum(support_RK + predicted_RK, 1) + absent_RK
    return precision_RK, recall_RK, f1_RK


def auroc(
    positive_N: NDArray[np.bool_], scores_N: FloatArray, weights_RN: FloatArray
) -> FloatArray:
    """Areas under the ROC curve, (R,), of one score under R weightings of the rows.

    The probability that a positive row scores above a negative one, ties counting half
    (Hanley & McNeil 1982); NaN where a weighting leaves no positive or no negative row.
    """
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    starts_G = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
    weights_RN = weights_RN[:, order_N]
    positive_N = positive_N[order_N]
    positive_RG = np.add.reduceat(weights_RN * positive_N, starts_G, axis=1)
    negative_RG = np.add.reduceat(weights_RN * ~positive_N, starts_G, axis=1)
    below_RG = np.cumsum(negative_RG, axis=1) - 0.5 * negative_RG
    pairs_R = positive_RG.sum(axis=1) * negative_RG.sum(axis=1)
    wins_R = (positive_RG * below_RG).sum(axis=1)
    area_R: FloatArray = np.where(pairs_R > 0, wins_R / np.maximum(pairs_R, 1), np.nan)
    return area_R


def roc_curve(positive_N: NDArray[np.bool_], scores_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """False and true positive rates from (0, 0) to (1, 1), the corners of the curve.

    Both kinds of rows must occur.
    """
    order_N = np.argsort(-scores_N, kind="stable")
    positive_N = positive_N[order_N]
    ends_G = np.flatnonzero(np.r_[np.diff(scores_N[order_N]) != 0, True])
    true_G = np.r_[0, np.cumsum(positive_N)[ends_G]]
    false_G = np.r_[0, np.cumsum(~positive_N)[ends_G]]
    turns_G = np.r_[True, (np.diff(true_G, 2) != 0) | (np.diff(false_G, 2) != 0), True]
    return (false_G / false_G[-1])[turns_G], (true_G / true_G[-1])[turns_G]


def nll_of_logits(labels_N: IntArray, logits_NK: NDArray[np.floating]) -> float:
    """Mean negative log-likelihood in nats, exact even where the softmax underflows."""
    logits_NK = logits_NK.astype(np.float64)
    true_N = np.take_along_axis(logits_NK, labels_N[:, None], axis=1)[:, 0]
    return float(np.mean(logsumexp(logits_NK, axis=1) - true_N))


def row_nll(labels_N: IntArray, probabilities_NK: FloatArray) -> FloatArray:
    """Negative log-likelihood of each row in nats; a probability of 0 counts as the least float."""
    true_N = np.take_along_axis(probabilities_NK, labels_N[:, None], axis=1)[:, 0]
    nll_N: FloatArray = -np.log(np.maximum(true_N, np.finfo(np.float64).tiny))
    return nll_N


def row_brier(labels_N: IntArray, probabilities_NK: FloatArray) -> FloatArray:
    """Squared distance of each row to its one-hot label, in [0, 2]."""
    target_NK = np.eye(probabilities_NK.shape[1])[labels_N]
    brier_N: FloatArray = ((probabilities_NK - target_NK) ** 2).sum(axis=1)
    return brier_N


def confidence_bin(confidence_N: FloatArray, bins: int = ECE_BINS) -> IntArray:
    """Index of the equal-width bin of [0, 1] that holds each confidence; 1.0 is in the last."""
    return np.minimum((confidence_N * bins).astype(np.int64), bins - 1)


def reliability(
    labels_N: IntArray, probabilities_NK: FloatArray, bins: int = ECE_BINS
) -> Reliability:
    """Reliability of the most probable class in equal-width bins (Guo et al. 2017)."""
    confidence_N = probabilities_NK.max(axis=1)
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = confidence_bin(confidence_N, bins)
    count_B = np.bincount(bin_N, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence_B = np.bincount(bin_N, confidence_N, bins) / count_B
        accuracy_B = np.bincount(bin_N, correct_N, bins) / count_B
    return Reliability(count_B.astype(np.int64), confidence_B, accuracy_B)


def summary(labels_N: IntArray, probabilities_NK: FloatArray) -> Summary:
    """All figures of at least one row; see :class:`Summary` for classes that do not occur."""
    classes = probabilities_NK.shape[1]
    confusion_KK = confusion(labels_N, probabilities_NK.argmax(axis=1), classes)
    precision_K, recall_K, f1_K = class_rates(confusion_KK)
    once_1N = np.ones((1, len(labels_N)))
    auroc_K = [auroc(labels_N == k, probabilities_NK[:, k], once_1N)[0] for k in range(classes)]
    known = [area for area in auroc_K if np.isfinite(area)]
    return Summary(
        accuracy=float(np.trace(confusion_KK) / len(labels_N)),
        balanced_accuracy=float(np.nanmean(recall_K)),
        macro_f1=float(np.nanmean(f1_K)),
        auroc_macro=float(np.mean(known)) if known else None,
        nll=float(row_nll(labels_N, probabilities_NK).mean()),
        brier=float(row_brier(labels_N, probabilities_NK).mean()),
        ece=reliability(labels_N, probabilities_NK).ece,
        per_class=tuple(
            ClassMetrics(
                precision=_known(precision_K[k]),
                recall=_known(recall_K[k]),
                f1=_known(f1_K[k]),
                auroc=_known(auroc_K[k]),
                support=int(confusion_KK[k].sum()),
            )
            for k in range(classes)
        ),
    )


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """The rows of several predictions over the same classes.

    Raises:
        ValueError: the classes differ, an image occurs twice, or there is nothing to join.
    """
    if len({part.classes for part in parts}) != 1:
        raise ValueError("predictions to join need the same classes")
    return Predictions(
        image_ids=tuple(name for part in parts for name in part.image_ids),
        patients=tuple(patient for part in parts for patient in part.patients),
        labels_N=np.concatenate([part.labels_N for part in parts]),
        logits_NK=np.concatenate([part.logits_NK for part in parts]),
        classes=parts[0].classes,
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
