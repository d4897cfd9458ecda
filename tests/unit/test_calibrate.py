"""Temperature and threshold: known truths, guarantees by simulation, degenerate inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fetal_core.calibrate import (
    CalibrateConfig,
    apply_temperature,
    choose_threshold,
    fit_temperature,
    upper_bound,
)
from fetal_core.metrics import FloatArray, IntArray, Predictions


def honest_sample(
    generator: np.random.Generator, rows: int, classes: int = 4, spread: float = 2.0
) -> tuple[FloatArray, IntArray]:
    """Logits whose softmax is the true distribution of the labels drawn from it."""
    logits_NK = generator.normal(scale=spread, size=(rows, classes))
    edges_NK = np.cumsum(apply_temperature(logits_NK, 1.0), axis=1)
    drawn_N = (generator.random((rows, 1)) > edges_NK).sum(axis=1)
    return logits_NK, np.minimum(drawn_N, classes - 1)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_temperature_recovers_a_known_scaling(scale: float) -> None:
    logits_NK, labels_N = honest_sample(np.random.default_rng(0), 20_000)
    found = fit_temperature(logits_NK * scale, labels_N)
    assert found.value == pytest.approx(scale, rel=0.05)
    assert found.nll_after <= found.nll_before
    if scale != 1:
        assert found.ece_after < 0.3 * found.ece_before


def test_applied_temperature_is_the_one_of_predictions() -> None:
    logits_NK, labels_N = honest_sample(np.random.default_rng(0), 10)
    names = tuple(map(str, range(10)))
    predictions = Predictions(names, names, labels_N, logits_NK.astype(np.float32), tuple("abcd"))
    np.testing.assert_allclose(
        apply_temperature(predictions.logits_NK, 1.7), predictions.probabilities_NK(1.7)
    )


def test_temperature_stays_at_one_where_nothing_can_be_learnt() -> None:
    empty = fit_temperature(np.empty((0, 3)), np.empty(0, dtype=np.int64))
    assert (empty.value, empty.nll_before) == (1.0, None)
    assert "no images" in empty.reason
    faultless = fit_temperature(np.eye(3) * 4, np.arange(3))
    assert faultless.value == 1.0
    assert "no mistake" in faultless.reason
    assert faultless.ece_after == faultless.ece_before


def test_threshold_keeps_its_promise_and_comes_near_the_best() -> None:
    generator = np.random.default_rng(3)
    config = CalibrateConfig(max_error=0.1, confidence=0.9)
    logits_NK, labels_N = honest_sample(generator, 100_000, spread=4.0)
    everyone_NK = apply_temperature(logits_NK, 1.0)
    confidence_N = np.sort(everyone_NK.max(axis=1))[::-1]
    order_N = np.argsort(-everyone_NK.max(axis=1))
    wrong_N = (everyone_NK.argmax(axis=1) != labels_N)[order_N]
    error_N = np.cumsum(wrong_N) / np.arange(1, len(wrong_N) + 1)
    best_coverage = (np.flatnonzero(error_N <= config.max_error)[-1] + 1) / len(wrong_N)
    values, coverages = [], []
    for _ in range(200):
        sample_NK, own_N = honest_sample(generator, 600, spread=4.0)
        found = choose_threshold(apply_temperature(sample_NK, 1.0), own_N, config)
        values.append(np.inf if found.value is None else found.value)
        coverages.append(found.coverage)
    accepted = np.searchsorted(-confidence_N, -np.array(values), side="right")
    broken = (accepted > 0) & (error_N[np.maximum(accepted, 1) - 1] > config.max_error)
    assert broken.mean() <= 0.1
    assert np.mean(coverages) > 0.8 * best_coverage


def test_promise_holds_where_confidence_says_nothing() -> None:
    generator = np.random.default_rng(4)
    config = CalibrateConfig(max_error=0.1, confidence=0.9)
    accepted_something = 0
    for _ in range(300):
        top_N = generator.uniform(0.6, 1.0, 400)
        labels_N = (generator.random(400) < 0.105).astype(np.int64)
        found = choose_threshold(np.stack([top_N, 1 - top_N], axis=1), labels_N, config)
        accepted_something += found.value is not None
    assert accepted_something / 300 <= 0.1


def test_one_early_mistake_does_not_send_everything_to_review() -> None:
    labels_N = np.zeros(600, dtype=np.int64)
    labels_N[[0, 1]] = 1
    top_N = np.linspace(0.999, 0.7, 600)
    found = choose_threshold(np.stack([top_N, 1 - top_N], axis=1), labels_N, CalibrateConfig())
    assert found.coverage == 1.0


def test_threshold_accepts_everything_of_a_good_model() -> None:
    labels_N = np.zeros(400, dtype=np.int64)
    top_N = np.linspace(0.6, 0.99, 400)
    found = choose_threshold(np.stack([top_N, 1 - top_N], axis=1), labels_N, CalibrateConfig())
    assert found.value == pytest.approx(0.6)
    assert (found.coverage, found.error, found.n, found.reason) == (1.0, 0.0, 400, None)
    assert found.error_upper < 0.05


def test_threshold_separates_sure_from_unsure() -> None:
    top_N = np.r_[np.linspace(0.9, 0.99, 500), np.linspace(0.5, 0.6, 200)]
    labels_N = np.r_[np.zeros(500), np.arange(200) % 2].astype(np.int64)
    found = choose_threshold(np.stack([top_N, 1 - top_N], axis=1), labels_N, CalibrateConfig())
    assert 0.5 < found.value < 0.9
    accepted_N = top_N >= found.value
    assert found.coverage == pytest.approx(accepted_N.mean())
    assert found.error == pytest.approx((labels_N[accepted_N] != 0).mean())
    assert found.error_upper <= 0.05


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_too_few_rows_send_everything_to_review(rows: int) -> None:
    probabilities_NK = np.tile([0.99, 0.01], (rows, 1))
    found = choose_threshold(probabilities_NK, np.zeros(rows, dtype=np.int64), CalibrateConfig())
    assert (found.value, found.coverage, found.error, found.n) == (None, 0.0, None, rows)
    assert f"{rows} calibration images are too few" in found.reason


def test_a_bad_model_sends_everything_to_review() -> None:
    labels_N = np.random.default_rng(0).integers(0, 2, 500)
    top_N = np.linspace(0.5, 1.0, 500)
    found = choose_threshold(np.stack([top_N, 1 - top_N], axis=1), labels_N, CalibrateConfig())
    assert found.value is None
    assert "no threshold keeps" in found.reason


def test_equal_confidences_are_accepted_together_or_not_at_all() -> None:
    labels_N = np.r_[np.zeros(90), np.ones(10)].astype(np.int64)
    found = choose_threshold(np.tile([0.8, 0.2], (100, 1)), labels_N, CalibrateConfig())
    assert found.value is None


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.5, 0.99))
def test_upper_bound_inverts_the_binomial_tail(errors: int, more: int, confidence: float) -> None:
    trials = errors + more
    bound = upper_bound(np.array([errors]), np.array([trials]), confidence)[0]
    assert binom.cdf(errors, trials, bound) == pytest.approx(1 - confidence, abs=1e-6)


def test_upper_bound_without_a_success_is_one() -> None:
    assert upper_bound(np.array([0, 5]), np.array([0, 5]), 0.9).tolist() == [1, 1]
