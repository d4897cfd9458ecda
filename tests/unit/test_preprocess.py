"""The shared transform: shape, aspect ratio, determinism."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fetal_core.config import parse
from fetal_core.errors import ConfigError
from fetal_core.preprocess import PreprocessConfig, preprocess

SIDES = st.integers(1, 300)
LETTERBOX = PreprocessConfig(size_px=64)
SQUASH = PreprocessConfig(size_px=64, fit="squash")


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 256, (height, width), dtype=np.uint8)


def disc(height: int, width: int, radius: float) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2 + 0.5) ** 2 + (x - width / 2 + 0.5) ** 2 <= radius**2
    return inside.astype(np.uint8) * 255


def extent(image_HW: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Rows and columns that hold something brighter than half."""
    bright = image_HW > 127
    return int(bright.any(1).sum()), int(bright.any(0).sum())


@pytest.mark.parametrize(("height", "width"), [(200, 400), (400, 200), (661, 959)])
def test_letterbox_keeps_a_circle_a_circle(height: int, width: int) -> None:
    radius = 0.4 * min(height, width)
    rows, columns = extent(preprocess(disc(height, width, radius), LETTERBOX))
    assert abs(rows - columns) <= 1
    assert rows == pytest.approx(2 * radius * 64 / max(height, width), abs=1.5)


def test_squash_stretches_both_sides() -> None:
    rows, columns = extent(preprocess(disc(200, 400, 80), SQUASH))
    assert rows == pytest.approx(160 * 64 / 200, abs=1.5)
    assert columns == pytest.approx(160 * 64 / 400, abs=1.5)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(32, 96))
def test_letterbox_of_any_size(height: int, width: int, size_px: int) -> None:
    config = PreprocessConfig(size_px=size_px)
    image_HW = np.full((height, width), 200, np.uint8)
    result_HW = preprocess(image_HW, config)
    assert result_HW.shape == (size_px, size_px)
    assert result_HW.dtype == np.uint8
    assert set(np.unique(result_HW)) <= {0, 200}
    rows, columns = extent(result_HW)
    assert max(rows, columns) == size_px
    assert rows == pytest.approx(max(1, height * size_px / max(height, width)), abs=0.5001)
    assert columns == pytest.approx(max(1, width * size_px / max(height, width)), abs=0.5001)
    filled = np.argwhere(result_HW > 0)
    before, after = filled.min(0), size_px - 1 - filled.max(0)
    assert np.abs(before - after).max() <= 1


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from([LETTERBOX, SQUASH]))
def test_grey_values_stay_within_those_of_the_image(
    height: int, width: int, config: PreprocessConfig
) -> None:
    image_HW = noise(height, width)
    result_HW = preprocess(image_HW, config)
    assert result_HW.shape == (64, 64)
    assert result_HW.max() <= image_HW.max()
    assert result_HW[result_HW > 0].min() >= image_HW.min()
    np.testing.assert_array_equal(result_HW, preprocess(image_HW.copy(), config))


def test_squash_is_antialiased_bilinear_as_torch_computes_it() -> None:
    image_HW = noise(150, 230)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image_HW)[None, None].float(), (64, 64), mode="bilinear", antialias=True
    )
    result_HW = preprocess(image_HW, SQUASH).astype(np.float32)
    assert np.abs(result_HW - expected[0, 0].numpy()).max() <= 1.0


@pytest.mark.parametrize("config", [LETTERBOX, SQUASH])
def test_image_of_the_right_size_is_untouched(config: PreprocessConfig) -> None:
    image_HW = noise(64, 64)
    np.testing.assert_array_equal(preprocess(image_HW, config), image_HW)


@pytest.mark.parametrize(("height", "width"), [(1, 500), (500, 1), (1, 1)])
def test_one_pixel_high_or_wide_images_leave_a_trace(height: int, width: int) -> None:
    image_HW = np.full((height, width), 255, np.uint8)
    rows, columns = extent(preprocess(image_HW, LETTERBOX))
    assert (rows, columns) == (64 if height >= width else 1, 64 if width >= height else 1)


def test_non_contiguous_images_are_read_by_their_content() -> None:
    wide_HW = noise(100, 200)
    np.testing.assert_array_equal(
        preprocess(wide_HW[:, ::2], LETTERBOX), preprocess(wide_HW[:, ::2].copy(), LETTERBOX)
    )


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"size_px.*32"):
        parse(PreprocessConfig, {"size_px": 31}, "test")
