"""Percentile intervals by resampling whole patients (Field & Welsh 2007, JRSS B 69:369)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fetal_core.metrics import (
    ECE_BINS,
    FloatArray,
    IntArray,
    Predictions,
    auroc,
    class_rates,
    confidence_bin,
    row_brier,
    row_nll,
)

Unit = Literal["patient", "image", "patient or image"]
Interval = tuple[float, float]

MIN_CLUSTERS = 5
_CELLS_PER_CHUNK = 2_000_000


@dataclass(frozen=True)
class Bootstrap:
    """Intervals and how they came about.

    Attributes:
        intervals: low and high by name of the statistic: the scalar fields of
            :class:`~fetal_core.metrics.Summary`, ``recall/k`` (likewise ``precision``, ``f1``,
            ``auroc``) for class index k, and the names of the ratios. A statistic is missing where
            fewer than ``MIN_CLUSTERS`` clusters carry it: resampling says nothing then.
        unit: what was drawn; images where patients are unknown, which makes intervals too
            narrow if several images show the same patient.
        clusters: number of those units.
        resamples: number of draws.
        level: nominal coverage.
    """

    intervals: dict[str, Interval]
    unit: Unit
    clusters: int
    resamples: int
    level: float


def bootstrap(
    labels_N: IntArray,
    probabilities_NK: FloatArray,
    patients: Sequence[str | None],
    ratios: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Bootstrap:
    """Patient-clustered percentile intervals of all figures.

    Patients are drawn with replacement and bring all their images along. Macro means run over
    the classes that a draw contains.

    Args:
        labels_N: class indices.
        probabilities_NK: rows sum to 1.
        patients: N patients, None where unknown.
        ratios: further statistics, each a numerator and a denominator of N rows.
        resamples: number of draws.
        seed: of the draws.
        level: nominal coverage in (0, 1).
    """
    cluster_N, unit = clusters(patients)
    clusters_total = int(cluster_N.max()) + 1
    drawn = draws(labels_N, probabilities_NK, cluster_N, ratios or {}, resamples, seed)
    support_K = clusters_behind(labels_N, cluster_N, probabilities_NK.shape[1])
    return Bootstrap(
        intervals=intervals(drawn, support_K, clusters_total, level),
        unit=unit,
        clusters=clusters_total,
        resamples=resamples,
        level=level,
    )


def clusters(patients: Sequence[str | None]) -> tuple[IntArray, Unit]:
    """Cluster index of every row, patients in sorted order; a row without patient is its own."""
    keys = [
        f"row {row:09d}" if patient is None else f"patient {patient}"
        for row, patient in enumerate(patients)
    ]
    known = sum(patient is not None for patient in patients)
    unit: Unit = "patient or image" if known else "image"
    if known == len(keys):
        unit = "patient"
    _, cluster_N = np.unique(np.array(keys), return_inverse=True)
    return cluster_N.astype(np.int64), unit


def draws(
    labels_N: IntArray,
    probabilities_NK: FloatArray,
    cluster_N: IntArray,
    ratios: Mapping[str, tuple[FloatArray, FloatArray]],
    resamples: int,
    seed: int,
) -> dict[str, FloatArray]:
    """Every statistic, (resamples,), in every draw of clusters; NaN where a draw lacks it.

    The draws depend on the number of clusters and the seed alone, so that the statistics of two
    models on the same clusters are paired.
    """
    cohort = _Cohort(labels_N, probabilities_NK, cluster_N, ratios)
    chunks = [cohort.statistics(weights_RC) for weights_RC in cohort.weights(resamples, seed)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def intervals(
    drawn: Mapping[str, FloatArray], support_K: IntArray, clusters_total: int, level: float
) -> dict[str, Interval]:
    """Percentile intervals of draws, without the statistics of too few clusters."""
    tail = (1 - level) / 2
    found: dict[str, Interval] = {}
    for name, values_R in drawn.items():
        index = name.partition("/")[2]
        behind = int(support_K[int(index)]) if index else clusters_total
        if behind >= MIN_CLUSTERS and np.isfinite(values_R).any():
            low, high = np.nanquantile(values_R, [tail, 1 - tail])
            found[name] = (float(low), float(high))
    return found


def clusters_behind(labels_N: IntArray, cluster_N: IntArray, classes: int) -> IntArray:
    """Number of clusters with an image of each class, (K,)."""
    pairs = np.unique(np.stack([labels_N, cluster_N]), axis=1)
    return np.bincount(pairs[0], minlength=classes).astype(np.int64)


class PairedConfusions:
    """Confusion matrices of several models M under the same draws of clusters.

    The models may have seen different images of a part; its clusters are those of all of them.

    Attributes:
        unit: what is drawn.
        clusters: number of those units.
    """

    def __init__(self, models: Sequence[Predictions]) -> None:
        """Count by cluster.

        Raises:
            ValueError: the models disagree about classes, labels or patients.
        """
        patients = _patients(models)
        cluster_N, self.unit = clusters(list(patients.values()))
        cluster_of = dict(zip(patients, cluster_N.tolist(), strict=True))
        self.clusters = len(set(cluster_of.values()))
        width = len(models[0].classes) if models else 1
        self._counts_CMKK = np.zeros((self.clusters, len(models), width, width))
        for column, model in enumerate(models):
            predicted = model.logits_NK.argmax(axis=1).tolist()
            rows = zip(model.image_ids, model.labels_N.tolist(), predicted, strict=True)
            for name, label, answer in rows:
                self._counts_CMKK[cluster_of[name], column, label, answer] += 1

    def draws(self, resamples: int, generator: np.random.Generator) -> FloatArray:
        """Matrices (1 + R, M, K, K): of all clusters, then of each draw with replacement."""
        shape = self._counts_CMKK.shape
        counts_CX = self._counts_CMKK.reshape(self.clusters, math.prod(shape[1:]))
        even_C = np.full(self.clusters, 1 / max(self.clusters, 1))
        drawn = [generator.multinomial(self.clusters, even_C) @ counts_CX for _ in range(resamples)]
        drawn_RX = np.stack([counts_CX.sum(axis=0), *drawn])
        return drawn_RX.reshape(1 + resamples, *shape[1:])


class _Cohort:
    """Sums by cluster, from which a weighting of clusters gives all statistics at once."""

    def __init__(
        self,
        labels_N: IntArray,
        probabilities_NK: FloatArray,
        cluster_N: IntArray,
        ratios: Mapping[str, tuple[FloatArray, FloatArray]],
    ) -> None:
        self._labels_N = labels_N
        self._probabilities_NK = probabilities_NK
        self._cluster_N = cluster_N
        self._clusters = int(cluster_N.max()) + 1
        self._classes = probabilities_NK.shape[1]
        predicted_N = probabilities_NK.argmax(axis=1)
        confidence_N = probabilities_NK.max(axis=1)
        one_N = np.ones(len(labels_N))
        correct_N = (predicted_N == labels_N).astype(np.float64)
        self._confusion_CM = self._by_cluster(
            labels_N * self._classes + predicted_N, one_N, self._classes**2
        )
        self._gap_CB = self._by_cluster(
            confidence_bin(confidence_N), confidence_N - correct_N, ECE_BINS
        )
        everything = {
            "accuracy": (correct_N, one_N),
            "nll": (row_nll(labels_N, probabilities_NK), one_N),
            "brier": (row_brier(labels_N, probabilities_NK), one_N),
            **ratios,
        }
        self._ratios = {
            name: (self._sums(top_N), self._sums(bottom_N))
            for name, (top_N, bottom_N) in everything.items()
        }
        self._rows_C = self._sums(one_N)

    def weights(self, resamples: int, seed: int) -> Iterator[FloatArray]:
        """How often each cluster is drawn, (R, C), in chunks of bounded size."""
        generator = np.random.default_rng(seed)
        even_C = np.full(self._clusters, 1 / self._clusters)
        chunk = max(1, _CELLS_PER_CHUNK // len(self._cluster_N))
        for start in range(0, resamples, chunk):
            size = min(chunk, resamples - start)
            yield generator.multinomial(self._clusters, even_C, size=size).astype(np.float64)

    def statistics(self, weights_RC: FloatArray) -> dict[str, FloatArray]:
        """All statistics, (R,) each, of R weightings."""
        found = {
            name: _divide(weights_RC @ a, weights_RC @ b) for name, (a, b) in self._ratios.items()
        }
        found["ece"] = np.abs(weights_RC @ self._gap_CB).sum(axis=1) / (weights_RC @ self._rows_C)
        confusion_RKK = (weights_RC @ self._confusion_CM).reshape(-1, self._classes, self._classes)
        precision_RK, recall_RK, f1_RK = class_rates(confusion_RKK)
        weights_RN = weights_RC[:, self._cluster_N]
        auroc_RK = np.stack(
            [
                auroc(self._labels_N == k, self._probabilities_NK[:, k], weights_RN)
                for k in range(self._classes)
            ],
            axis=1,
        )
        found["balanced_accuracy"] = _mean_of_known(recall_RK)
        found["macro_f1"] = _mean_of_known(f1_RK)
        found["auroc_macro"] = _mean_of_known(auroc_RK)
        rates = {"precision": precision_RK, "recall": recall_RK, "f1": f1_RK, "auroc": auroc_RK}
        for name, rate_RK in rates.items():
            found |= {f"{name}/{k}": rate_RK[:, k] for k in range(self._classes)}
        return found

    def _sums(self, values_N: FloatArray) -> FloatArray:
        return _weighted_bincount(self._cluster_N, values_N, self._clusters)

    def _by_cluster(self, column_N: IntArray, values_N: FloatArray, columns: int) -> FloatArray:
        cell_N = self._cluster_N * columns + column_N
        cells = _weighted_bincount(cell_N, values_N, self._clusters * columns)
        return cells.reshape(self._clusters, columns)


def _patients(models: Sequence[Predictions]) -> dict[str, str | None]:
    """Patients by image, sorted by image."""
    known: dict[str, tuple[str | None, int]] = {}
    for model in models:
        if model.classes != models[0].classes:
            raise ValueError("models to compare need the same classes")
        rows = zip(model.image_ids, model.patients, model.labels_N.tolist(), strict=True)
        for name, patient, label in rows:
            if known.setdefault(name, (patient, label)) != (patient, label):
                raise ValueError(f"models disagree about the patient or the label of {name}")
    return {name: known[name][0] for name in sorted(known)}


def _weighted_bincount(index_N: IntArray, values_N: FloatArray, length: int) -> FloatArray:
    return np.bincount(index_N, values_N, length).astype(np.float64)


def _divide(top_R: FloatArray, bottom_R: FloatArray) -> FloatArray:
    missing_R = np.where(bottom_R > 0, 0.0, np.nan)
    return top_R / np.where(bottom_R > 0, bottom_R, 1.0) + missing_R


def _mean_of_known(values_RK: FloatArray) -> FloatArray:
    known_RK = np.isfinite(values_RK)
    return _divide(np.where(known_RK, values_RK, 0.0).sum(axis=1), known_RK.sum(axis=1) * 1.0)
