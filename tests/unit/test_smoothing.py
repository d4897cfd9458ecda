"""Pooling over time against its closed form, and hysteresis by properties."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import softmax

from fetal_core.config import parse
from fetal_core.errors import ConfigError
from fetal_core.smoothing import Smoothed, SmoothingConfig, smooth

Rows = Sequence[NDArray[np.float64]]
examples = settings(max_examples=60, deadline=None)


def run(rows_NK: Rows, config: SmoothingConfig) -> list[Smoothed]:
    found: list[Smoothed] = []
    for row_K in rows_NK:
        found.append(smooth(found[-1] if found else None, row_K, config))
    return found


@st.composite
def scans(draw: st.DrawFn) -> NDArray[np.float64]:
    """Probabilities (N, K) between 1e-5 and 1, away from the floor."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(2, 6)))
    return softmax(draw(arrays(np.float64, shape, elements=st.floats(-4, 4))), axis=1)


configs = st.builds(SmoothingConfig, alpha=st.floats(0.01, 1), switch_odds=st.floats(1, 20))


@examples
@given(scans(), configs)
def test_pool_is_the_weighted_geometric_mean(rows_NK: np.ndarray, config: SmoothingConfig) -> None:
    n, alpha = len(rows_NK), config.alpha
    weights_N = alpha * (1 - alpha) ** np.arange(n - 1, -1, -1)
    weights_N[0] = (1 - alpha) ** (n - 1)
    mean_K = np.prod(rows_NK ** weights_N[:, None], axis=0)
    np.testing.assert_allclose(
        run(rows_NK, config)[-1].probabilities_K, mean_K / mean_K.sum(), rtol=1e-9
    )


@examples
@given(
    arrays(np.float64, (6, 4), elements=st.sampled_from([0.0, 1e-300, 1e-9, 0.5, 1.0])),
    configs,
    st.integers(1, 10**9),
)
def test_pool_stays_a_distribution_for_certain_frames(
    raw_NK: np.ndarray, config: SmoothingConfig, frames: int
) -> None:
    raw_NK[:, 0] += raw_NK.sum(axis=1) == 0
    rows_NK = raw_NK / raw_NK.sum(axis=1, keepdims=True)
    found = run(rows_NK, config)
    found.append(smooth(found[-1], rows_NK[0], config, frames))
    for smoothed in found:
        assert (smoothed.probabilities_K > 0).all()
        assert smoothed.probabilities_K.sum() == pytest.approx(1, abs=1e-12)
        assert 0 < smoothed.confidence <= 1


@examples
@given(scans(), configs)
def test_frames_that_repeat_an_answer_keep_its_confidence(
    rows_NK: np.ndarray, config: SmoothingConfig
) -> None:
    for smoothed in run([rows_NK[0]] * 20, config):
        np.testing.assert_allclose(smoothed.probabilities_K, rows_NK[0], rtol=1e-9)
        assert smoothed.plane == run(rows_NK[:1], config)[0].plane


@examples
@given(scans(), configs, st.integers(1, 5))
def test_frame_that_stands_for_many_equals_as_many_frames(
    rows_NK: np.ndarray, config: SmoothingConfig, frames: int
) -> None:
    before = run(rows_NK, config)[-1]
    once = smooth(before, rows_NK[0], config, frames)
    one_by_one = run([*rows_NK, *[rows_NK[0]] * frames], config)[-1]
    np.testing.assert_allclose(once.probabilities_K, one_by_one.probabilities_K, rtol=1e-9)


@examples
@given(scans(), configs)
def test_plane_changes_exactly_when_another_is_far_enough_ahead(
    rows_NK: np.ndarray, config: SmoothingConfig
) -> None:
    found = run(rows_NK, config)
    assert found[0].plane == rows_NK[0].argmax()
    for before, now in pairwise(found):
        best = now.probabilities_K.argmax()
        odds = now.probabilities_K[best] / now.probabilities_K[before.plane]
        assert now.plane == (best if odds > config.switch_odds else before.plane)


@examples
@given(scans(), configs, st.randoms(use_true_random=False))
def test_order_of_classes_does_not_matter(
    rows_NK: np.ndarray, config: SmoothingConfig, random: object
) -> None:
    order = np.arange(rows_NK.shape[1])
    random.shuffle(order)
    np.testing.assert_allclose(
        run(rows_NK[:, order], config)[-1].probabilities_K,
        run(rows_NK, config)[-1].probabilities_K[order],
        rtol=1e-9,
    )


def test_noise_between_two_planes_does_not_flicker_and_a_true_change_shows() -> None:
    generator = np.random.default_rng(0)
    unsure_NK = softmax(generator.normal((1, 1, -2), 0.5, (500, 3)), axis=1)
    changed_NK = softmax(generator.normal((-1, 2, -2), 0.5, (20, 3)), axis=1)

    def changes(planes: Sequence[int]) -> int:
        return sum(a != b for a, b in pairwise(planes))

    found = run([*unsure_NK, *changed_NK], SmoothingConfig())
    assert changes([int(row_K.argmax()) for row_K in unsure_NK]) > 200
    assert changes([smoothed.plane for smoothed in found[:500]]) <= 4
    assert all(smoothed.plane == 1 for smoothed in found[510:])


def test_plane_that_one_frame_ruled_out_comes_back() -> None:
    rows = [np.array([1.0, 0.0]), *[np.array([0.0, 1.0])] * 6]
    planes = [smoothed.plane for smoothed in run(rows, SmoothingConfig())]
    assert planes[0] == 0
    assert planes[-1] == 1


@pytest.mark.parametrize(
    "values",
    [{"alpha": 0}, {"alpha": 1.1}, {"alpha": float("nan")}, {"switch_odds": 0.5}, {"beta": 1}],
)
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        parse(SmoothingConfig, values, "test")
