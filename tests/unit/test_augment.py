"""Augmentation: reproducible per row, neutral at zero, and right about geometry."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from fetal_core.augment import AugmentConfig, augment, row_seeds
from fetal_core.config import parse
from fetal_core.errors import ConfigError

STRONG = AugmentConfig(
    vertical_flip=0.5,
    rotation_deg=40,
    crop=0.4,
    brightness=0.5,
    contrast=0.5,
    gain=0.5,
    speckle=0.3,
)


def only(**strengths: float) -> AugmentConfig:
    return AugmentConfig.none().model_copy(update=strengths)


def images_of(rows: int, height_px: int = 32, width_px: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, 1, height_px, width_px, generator=torch.Generator().manual_seed(seed))


def smooth_image(size_px: int) -> torch.Tensor:
    axis = torch.linspace(-1, 1, size_px)
    blob = torch.exp(-((axis[None] - 0.3) ** 2 + 2 * (axis[:, None] + 0.2) ** 2) / 0.1)
    return blob[None, None]


def seeds_of(rows: int, seed: int = 3, epoch: int = 1) -> torch.Tensor:
    return row_seeds(seed, epoch, torch.arange(rows))


def test_all_off_returns_the_input_itself() -> None:
    images = images_of(4)
    assert augment(images, AugmentConfig.none(), seeds_of(4)) is images


def test_a_row_is_the_same_in_every_batch() -> None:
    images, seeds = images_of(9), seeds_of(9)
    whole = augment(images, STRONG, seeds)
    order = torch.tensor([7, 2, 5])
    assert torch.equal(augment(images[order], STRONG, seeds[order]), whole[order])
    singles = [augment(images[i : i + 1], STRONG, seeds[i : i + 1]) for i in range(9)]
    assert torch.equal(torch.cat(singles), whole)


def test_rows_and_epochs_differ_and_calls_repeat() -> None:
    images = images_of(1).repeat(6, 1, 1, 1)
    first = augment(images, STRONG, seeds_of(6, epoch=0))
    assert len({tuple(row.flatten().tolist()) for row in first}) == 6
    assert torch.equal(first, augment(images, STRONG, seeds_of(6, epoch=0)))
    assert not torch.equal(first, augment(images, STRONG, seeds_of(6, epoch=1)))
    assert not torch.equal(first, augment(images, STRONG, seeds_of(6, seed=4, epoch=0)))


def test_row_seeds_do_not_collide() -> None:
    seeds = torch.stack([seeds_of(5000, seed, epoch) for seed in (0, 1) for epoch in range(10)])
    assert seeds.dtype == torch.int64
    assert len(seeds.unique()) == seeds.numel()


def test_row_seeds_match_splitmix64_in_unbounded_integers() -> None:
    mask = (1 << 64) - 1

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # first output of the published generator, seed 0
    rows = [0, 1, 12399]
    expected = [mix(mix(mix(42) + 5) + row) for row in rows]
    found = [seed & mask for seed in row_seeds(42, 5, torch.tensor(rows)).tolist()]
    assert found == expected


def test_certain_flips_equal_torch_flip() -> None:
    images, seeds = images_of(3, 20, 36), seeds_of(3)
    mirrored = augment(images, only(horizontal_flip=1.0), seeds)
    torch.testing.assert_close(mirrored, images.flip(3), atol=1e-5, rtol=0)
    upended = augment(images, only(vertical_flip=1.0), seeds)
    torch.testing.assert_close(upended, images.flip(2), atol=1e-5, rtol=0)


def test_a_flip_happens_at_its_probability() -> None:
    images = images_of(1, 4, 4).repeat(4000, 1, 1, 1)
    flipped = augment(images, only(horizontal_flip=0.3), seeds_of(4000))
    share = (flipped - images).abs().amax((1, 2, 3)).gt(1e-3).float().mean()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))


@pytest.mark.parametrize(("height_px", "width_px"), [(48, 48), (40, 64)])
def test_rotation_is_a_rotation_of_torchvision_by_an_angle_in_range(
    height_px: int, width_px: int
) -> None:
    image = smooth_image(64)[:, :, :height_px, :width_px]
    found = augment(image, only(rotation_deg=20.0), seeds_of(1))
    angles = [half / 2 for half in range(-40, 41)]
    errors = [
        (reference.rotate(image, angle, InterpolationMode.BILINEAR) - found).abs().max().item()
        for angle in angles
    ]
    assert min(errors) < 0.02
    assert min(errors) < 0.2 * errors[len(angles) // 2]


def test_rotations_fill_their_range() -> None:
    image = smooth_image(48)
    angles = range(-20, 21)
    bank = torch.cat([reference.rotate(image, a, InterpolationMode.BILINEAR) for a in angles])
    found = augment(image.repeat(300, 1, 1, 1), only(rotation_deg=20.0), seeds_of(300))
    nearest = torch.cdist(found.flatten(1), bank.flatten(1)).argmin(1) - 20
    assert nearest.min() <= -19
    assert nearest.max() >= 19
    assert abs(nearest.float().mean()) < 4 * 20 / math.sqrt(3 * 300)


def test_a_crop_is_a_window_resized_back() -> None:
    width = torch.linspace(0, 1, 64).expand(200, 1, 64, 64).contiguous()
    slope = augment(width, only(crop=0.4), seeds_of(200)).diff(dim=3)[:, 0, 32, 8:56].mean(1)
    kept = slope / width.diff(dim=3).mean()
    assert kept.min() >= 0.6 - 1e-3
    assert kept.min() < 0.62
    assert 0.98 < kept.max() <= 1 + 1e-3


def test_a_crop_never_reaches_beyond_the_image() -> None:
    cropped = augment(torch.ones(200, 1, 64, 64), only(crop=0.5), seeds_of(200))
    torch.testing.assert_close(cropped, torch.ones_like(cropped), atol=1e-4, rtol=0)


def test_contrast_keeps_the_mean_and_scales_the_deviation() -> None:
    images = 0.4 + 0.2 * images_of(50)
    changed = augment(images, only(contrast=0.3), seeds_of(50))
    torch.testing.assert_close(changed.mean((1, 2, 3)), images.mean((1, 2, 3)))
    ratio = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.7 <= ratio.min() < 0.75
    assert 1.25 < ratio.max() <= 1.3


def test_gain_varies_with_depth_only_and_keeps_black_black() -> None:
    images = torch.full((50, 1, 16, 16), 0.5)
    images[:, :, :, :4] = 0
    ratio = augment(images, only(gain=0.2), seeds_of(50)) / 0.5
    assert ratio[..., :4].abs().max() == 0
    assert torch.equal(ratio[..., 4], ratio[..., 15])
    assert ratio[..., 4:].min() >= 0.8
    assert ratio[..., 4:].max() <= 1.2
    steps = ratio[:, 0, :, 8].diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-5, rtol=0)


def test_brightness_scales_all_pixels_alike() -> None:
    images = 0.1 + 0.6 * images_of(50)
    ratio = (augment(images, only(brightness=0.2), seeds_of(50)) / images).flatten(1)
    assert (ratio.amax(1) - ratio.amin(1)).max() < 1e-5
    assert 0.8 <= ratio.min() < 0.83
    assert 1.17 < ratio.max() <= 1.2 + 1e-6


def test_speckle_is_multiplicative_gaussian_noise() -> None:
    images = torch.full((4, 1, 64, 64), 0.5)
    noise = (augment(images, only(speckle=0.1), seeds_of(4)) / 0.5 - 1) / 0.1
    assert stats.kstest(noise[0].flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(4)
    assert correlation.abs().max() < 0.08


@settings(max_examples=60, deadline=None)
@given(
    strengths=st.fixed_dictionaries(
        {
            name: st.floats(0, 180 if name == "rotation_deg" else 0.9)
            for name in AugmentConfig.model_fields
        }
    ),
    height_px=st.integers(1, 24),
    width_px=st.integers(1, 24),
    seed=st.integers(0, 2**62),
)
def test_shape_and_range_are_kept(
    strengths: dict[str, float], height_px: int, width_px: int, seed: int
) -> None:
    images = images_of(3, height_px, width_px)
    before = images.clone()
    found = augment(images, AugmentConfig(**strengths), seeds_of(3, seed))
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert bool(((found >= 0) & (found <= 1 + 1e-6)).all())
    assert torch.equal(images, before)


def test_strengths_out_of_range_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(AugmentConfig, {"horizontal_flip": 1.5, "crop": -0.1, "flipp": 1}, "test")
    assert all(word in str(caught.value) for word in ("horizontal_flip", "crop", "flipp"))
