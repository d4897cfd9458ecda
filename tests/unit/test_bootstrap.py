"""Bootstrap intervals: coverage by simulation, clustering, and agreement with a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from fetal_core.bootstrap import bootstrap, clusters, draws, intervals
from fetal_core.metrics import FloatArray, IntArray, summary
from prediction_samples import sample_predictions

PATIENTS, IMAGES_EACH = 40, 5


def clustered_answers(generator: np.random.Generator) -> tuple[IntArray, FloatArray, list[str]]:
    """Two-class answers whose chance of being right varies by patient, 0.8 on average."""
    right_P = generator.beta(2.0, 0.5, PATIENTS)
    patient_N = np.repeat(np.arange(PATIENTS), IMAGES_EACH)
    labels_N = generator.integers(0, 2, len(patient_N))
    right_N = generator.random(len(patient_N)) < right_P[patient_N]
    predicted_N = np.where(right_N, labels_N, 1 - labels_N)
    return labels_N, np.eye(2)[predicted_N] * 0.8 + 0.1, [f"P{p}" for p in patient_N]


def test_intervals_cover_the_true_accuracy_about_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        labels_N, probabilities_NK, patients = clustered_answers(generator)
        found = bootstrap(labels_N, probabilities_NK, patients, resamples=300)
        low, high = found.intervals["accuracy"]
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_clustered_intervals_are_wider_where_patients_correlate() -> None:
    labels_N, probabilities_NK, patients = clustered_answers(np.random.default_rng(1))
    by_patient = bootstrap(labels_N, probabilities_NK, patients)
    by_image = bootstrap(labels_N, probabilities_NK, [None] * len(patients))
    assert (by_patient.unit, by_patient.clusters) == ("patient", PATIENTS)
    assert (by_image.unit, by_image.clusters) == ("image", len(patients))
    widths = [high - low for low, high in (r.intervals["accuracy"] for r in (by_patient, by_image))]
    assert widths[0] > 1.2 * widths[1]


def test_every_draw_equals_the_summary_of_the_repeated_rows() -> None:
    predictions = sample_predictions(rows=120, patients=15)
    labels_N, probabilities_NK = predictions.labels_N, predictions.probabilities_NK()
    cluster_N, _ = clusters(predictions.patients)
    accepted_N = (probabilities_NK.max(axis=1) > 0.7) * 1.0
    ratios = {"coverage": (accepted_N, np.ones(120))}
    drawn = draws(labels_N, probabilities_NK, cluster_N, ratios, resamples=20, seed=5)
    generator = np.random.default_rng(5)
    total = cluster_N.max() + 1
    weights_RC = generator.multinomial(total, np.full(total, 1 / total), size=20)
    for draw, weights_C in enumerate(weights_RC):
        rows = np.repeat(np.arange(120), weights_C[cluster_N])
        expected = summary(labels_N[rows], probabilities_NK[rows])
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc_macro"):
            assert drawn[name][draw] == pytest.approx(getattr(expected, name))
        for name in ("nll", "brier", "ece"):
            assert drawn[name][draw] == pytest.approx(getattr(expected, name))
        for k, row in enumerate(expected.per_class):
            assert drawn[f"recall/{k}"][draw] == pytest.approx(row.recall)
            assert drawn[f"auroc/{k}"][draw] == pytest.approx(row.auroc)
        assert drawn["coverage"][draw] == pytest.approx(accepted_N[rows].mean())


def test_intervals_hold_the_point_estimates_and_repeat_by_seed() -> None:
    predictions = sample_predictions()
    arguments = (predictions.labels_N, predictions.probabilities_NK(), predictions.patients)
    first, again, other = (bootstrap(*arguments, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.intervals != other.intervals
    estimates = summary(*arguments[:2])
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc_macro", "nll", "brier"):
        low, high = first.intervals[name]
        assert low < getattr(estimates, name) < high


def test_intervals_are_the_quantiles_of_the_known_draws() -> None:
    values_R = np.append(np.arange(1001) / 1000, np.nan)
    drawn = {"accuracy": values_R, "recall/0": values_R, "recall/1": np.full(1002, np.nan)}
    found = intervals(drawn, np.array([30, 30]), clusters_total=30, level=0.9)
    assert found.keys() == {"accuracy", "recall/0"}
    assert found["accuracy"] == pytest.approx((0.05, 0.95))


def test_order_of_the_rows_does_not_matter() -> None:
    predictions = sample_predictions()
    order = np.random.default_rng(0).permutation(len(predictions))
    labels_N, probabilities_NK = predictions.labels_N, predictions.probabilities_NK()
    straight = bootstrap(labels_N, probabilities_NK, predictions.patients, resamples=50)
    shuffled_patients = [predictions.patients[row] for row in order]
    shuffled = bootstrap(labels_N[order], probabilities_NK[order], shuffled_patients, resamples=50)
    assert straight.intervals.keys() == shuffled.intervals.keys()
    for name, interval in straight.intervals.items():
        assert shuffled.intervals[name] == pytest.approx(interval)


def test_no_interval_from_fewer_than_five_clusters() -> None:
    labels_N = np.array([0] * 20 + [1] * 4)
    probabilities_NK = np.tile([0.7, 0.3], (24, 1))
    patients = [f"P{row}" for row in range(20)] + ["Q1", "Q2", "Q3", "Q4"]
    found = bootstrap(labels_N, probabilities_NK, patients, resamples=100).intervals
    assert "recall/0" in found
    assert "recall/1" not in found
    few = bootstrap(labels_N, probabilities_NK, ["P1"] * 12 + ["P2"] * 12, resamples=100)
    assert few.intervals == {}


def test_rows_without_patient_stand_for_themselves() -> None:
    cluster_N, unit = clusters(["A", None, "A", None, "row 000000001"])
    assert unit == "patient or image"
    assert cluster_N[0] == cluster_N[2]
    assert len(set(cluster_N)) == 4
