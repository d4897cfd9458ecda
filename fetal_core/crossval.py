"""Repeated, patient-grouped cross-validation: what the folds say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fetal_core.bootstrap import Bootstrap, clusters, clusters_behind, draws, intervals
from fetal_core.evaluate import EvaluateConfig, figures_json
from fetal_core.metrics import (
    ClassMetrics,
    IntArray,
    Predictions,
    Summary,
    concatenate,
    confusion,
    summary,
)

_LEVEL = 0.95
_SCALARS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc_macro", "nll", "brier", "ece")
_RATES = ("precision", "recall", "f1", "auroc")


@dataclass(frozen=True, eq=False)
class CrossvalResult:
    """Figures of a repeated cross-validation.

    Every repeat predicts every image once, by the model whose training part lacked its patient;
    the figures of a repeat are those of its pooled predictions, at temperature 1.

    Attributes:
        classes: K names.
        images: number of images.
        patients: number of known patients, None where all are unknown.
        folds: accuracy by (repeat, fold).
        repeats: figures by repeat.
        mean: mean over the repeats.
        spread: standard deviation of the scalar figures over the repeats, None with one repeat.
        bootstrap: intervals of ``mean``: every draw of patients is scored in all repeats and
            averaged over them.
        confusion_KK: counts over all repeats, rows are labels.
    """

    classes: tuple[str, ...]
    images: int
    patients: int | None
    folds: dict[tuple[int, int], float]
    repeats: dict[int, Summary]
    mean: Summary
    spread: dict[str, float | None]
    bootstrap: Bootstrap
    confusion_KK: IntArray

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        return {
            "images": self.images,
            "patients": self.patients,
            **figures_json(self.classes, self.mean, self.bootstrap),
            "standard_deviation_over_repeats": self.spread,
            "repeats": {str(repeat): asdict(figures) for repeat, figures in self.repeats.items()},
            "folds": [
                {"repeat": repeat, "fold": fold, "accuracy": accuracy}
                for (repeat, fold), accuracy in self.folds.items()
            ],
            "confusion_over_repeats": self.confusion_KK.tolist(),
        }


def crossval_summary(
    folds: Mapping[tuple[int, int], Predictions], config: EvaluateConfig
) -> CrossvalResult:
    """Pool the folds of every repeat and average over the repeats.

    Args:
        folds: held-out predictions by (repeat, fold).
        config: of the bootstrap.

    Raises:
        ValueError: the repeats do not cover the same images with the same labels and patients.
    """
    folds = {key: folds[key] for key in sorted(folds)}
    pooled = {
        repeat: _sorted(concatenate([part for (r, _), part in folds.items() if r == repeat]))
        for repeat, _ in folds
    }
    first = _check_same_images(list(pooled.values()))
    summaries = {
        repeat: summary(part.labels_N, part.probabilities_NK()) for repeat, part in pooled.items()
    }
    return CrossvalResult(
        classes=first.classes,
        images=len(first),
        patients=len({patient for patient in first.patients if patient is not None}) or None,
        folds={
            key: float(np.mean(part.logits_NK.argmax(axis=1) == part.labels_N))
            for key, part in folds.items()
        },
        repeats=summaries,
        mean=_mean(list(summaries.values())),
        spread={name: _deviation(list(summaries.values()), name) for name in _SCALARS},
        bootstrap=_bootstrap(list(pooled.values()), config),
        confusion_KK=np.sum([_confusion(part) for part in pooled.values()], axis=0),
    )


def _bootstrap(pooled: Sequence[Predictions], config: EvaluateConfig) -> Bootstrap:
    first = pooled[0]
    cluster_N, unit = clusters(first.patients)
    drawn = [
        draws(part.labels_N, part.probabilities_NK(), cluster_N, {}, config.resamples, config.seed)
        for part in pooled
    ]
    averaged = {name: np.mean([repeat[name] for repeat in drawn], axis=0) for name in drawn[0]}
    total = int(cluster_N.max()) + 1
    support_K = clusters_behind(first.labels_N, cluster_N, len(first.classes))
    found = intervals(averaged, support_K, total, _LEVEL)
    return Bootstrap(found, unit, total, config.resamples, _LEVEL)


def _confusion(part: Predictions) -> IntArray:
    return confusion(part.labels_N, part.logits_NK.argmax(axis=1), len(part.classes))


def _check_same_images(pooled: Sequence[Predictions]) -> Predictions:
    first = pooled[0]
    for other in pooled[1:]:
        same = (first.image_ids, first.patients) == (other.image_ids, other.patients)
        if not same or not np.array_equal(first.labels_N, other.labels_N):
            raise ValueError("every repeat must hold the same images, labels and patients")
    return first


def _sorted(part: Predictions) -> Predictions:
    order = sorted(range(len(part)), key=part.image_ids.__getitem__)
    return Predictions(
        image_ids=tuple(part.image_ids[row] for row in order),
        patients=tuple(part.patients[row] for row in order),
        labels_N=part.labels_N[order],
        logits_NK=part.logits_NK[order],
        classes=part.classes,
    )


def _mean(found: Sequence[Summary]) -> Summary:
    scalars = {name: _average([getattr(one, name) for one in found]) for name in _SCALARS}
    per_class = tuple(
        ClassMetrics(
            **{rate: _average([getattr(one, rate) for one in rows]) for rate in _RATES},
            support=rows[0].support,
        )
        for rows in zip(*(one.per_class for one in found), strict=True)
    )
    return Summary(**scalars, per_class=per_class)  # type: ignore[arg-type]


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _deviation(found: Sequence[Summary], name: str) -> float | None:
    values = [getattr(one, name) for one in found]
    if len(values) < 2 or None in values:
        return None
    return float(np.std(values, ddof=1))
