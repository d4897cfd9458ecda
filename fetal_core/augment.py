"""Random augmentation of batches, reproducible per row whatever the batch is made of."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fetal_core.config import Config

# SplitMix64 (Steele, Lea and Flood 2014), its constants as signed 64-bit integers.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_NOISE_OFFSETS = 1 << 16


class AugmentConfig(Config):
    """Strength of each augmentation; 0 turns it off.

    Attributes:
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of a top-bottom flip.
        rotation_deg: largest rotation about the centre, either way.
        crop: largest fraction of the side that a random crop removes before it is resized back.
        brightness: largest relative change of all grey values.
        contrast: largest relative change of the distance from the image's mean.
        gain: largest relative error of the time-gain compensation at either end of the depth axis.
        speckle: standard deviation of multiplicative Gaussian noise.
    """

    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    rotation_deg: float = Field(default=15.0, ge=0, le=180)
    crop: float = Field(default=0.15, ge=0, le=0.9)
    brightness: float = Field(default=0.1, ge=0, le=1)
    contrast: float = Field(default=0.15, ge=0, le=1)
    gain: float = Field(default=0.1, ge=0, le=1)
    speckle: float = Field(default=0.05, ge=0, le=1)

    @classmethod
    def none(cls) -> AugmentConfig:
        """No augmentation at all."""
        return cls(**dict.fromkeys(cls.model_fields, 0.0))

    @property
    def moves(self) -> bool:
        """Whether any geometric augmentation is on."""
        return any((self.horizontal_flip, self.vertical_flip, self.rotation_deg, self.crop))

    @property
    def recolours(self) -> bool:
        """Whether any smooth intensity augmentation is on."""
        return any((self.brightness, self.contrast, self.gain))


def row_seeds(seed: int, epoch: int, row_ids_N: Tensor) -> Tensor:
    """Seeds for ``augment``, a function of (seed, epoch, row id) alone.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        row_ids_N: int64 identifiers, stable across epochs and ranks.

    Returns:
        int64 seeds of shape (N,), on the device of ``row_ids_N``.
    """
    run = torch.tensor(seed, dtype=torch.int64, device=row_ids_N.device)
    return _mix(_mix(_mix(run) + epoch) + row_ids_N.to(torch.int64))


def augment(images_N1HW: Tensor, config: AugmentConfig, seeds_N: Tensor) -> Tensor:
    """Augment each image by draws that depend on its own seed only.

    Args:
        images_N1HW: floats in [0, 1].
        config: the strengths.
        seeds_N: int64, one a row, from ``row_seeds``.

    Returns:
        Floats in [0, 1] of the same shape, dtype and device; the input itself if all is off.
    """
    draws_CN = _uniforms(seeds_N, channels=11).to(images_N1HW.dtype)
    if config.moves:
        images_N1HW = _move(images_N1HW, config, draws_CN[:6])
    if config.recolours:
        images_N1HW = _recolour(images_N1HW, config, draws_CN[6:10])
    if config.speckle:
        noise_N1HW = _noise(images_N1HW, draws_CN[10]).mul_(config.speckle).add_(1)
        images_N1HW = images_N1HW * noise_N1HW
    return images_N1HW.clamp(0, 1) if config.recolours or config.speckle else images_N1HW


def _move(images_N1HW: Tensor, config: AugmentConfig, draws_CN: Tensor) -> Tensor:
    height_px, width_px = images_N1HW.shape[-2:]
    flip_x_N = 1 - 2 * (draws_CN[0] < config.horizontal_flip).to(draws_CN.dtype)
    flip_y_N = 1 - 2 * (draws_CN[1] < config.vertical_flip).to(draws_CN.dtype)
    angle_N = _signed(draws_CN[2], math.radians(config.rotation_deg))
    cut_N = draws_CN[3] * config.crop
    cos_N, sin_N = angle_N.cos() * (1 - cut_N), angle_N.sin() * (1 - cut_N)
    # The map from output to input coordinates, both in [-1, 1]: flip, crop, rotate. Summing
    # outer products is several times as fast on a CPU as functional.affine_grid.
    aspect = height_px / width_px
    per_x_N21 = torch.stack([cos_N * flip_x_N, sin_N * flip_x_N / aspect], 1).unsqueeze(2)
    per_y_N21 = torch.stack([-sin_N * flip_y_N * aspect, cos_N * flip_y_N], 1).unsqueeze(2)
    shift_x_N = _signed(draws_CN[4], 1 - 1 / width_px) * cut_N
    shift_y_N = _signed(draws_CN[5], 1 - 1 / height_px) * cut_N
    shift_N21 = torch.stack([shift_x_N, shift_y_N], 1).unsqueeze(2)
    columns_N2W = per_x_N21 * _centres(width_px, like=images_N1HW)
    rows_N2H = per_y_N21 * _centres(height_px, like=images_N1HW) + shift_N21
    grid_N2HW = rows_N2H.unsqueeze(3) + columns_N2W.unsqueeze(2)
    return functional.grid_sample(
        images_N1HW,
        grid_N2HW.permute(0, 2, 3, 1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )


def _centres(size_px: int, like: Tensor) -> Tensor:
    """Centres of the pixels of a side that reaches from -1 to 1."""
    end = 1 - 1 / size_px
    return torch.linspace(-end, end, size_px, dtype=like.dtype, device=like.device)


def _recolour(images_N1HW: Tensor, config: AugmentConfig, draws_CN: Tensor) -> Tensor:
    brightness_N111 = 1 + _signed(draws_CN[0], config.brightness).view(-1, 1, 1, 1)
    contrast_N111 = 1 + _signed(draws_CN[1], config.contrast).view(-1, 1, 1, 1)
    near_N111, far_N111 = (
        1 + _signed(draw_N, config.gain).view(-1, 1, 1, 1) for draw_N in draws_CN[2:4]
    )
    depth_H1 = torch.linspace(
        0, 1, images_N1HW.shape[2], dtype=images_N1HW.dtype, device=images_N1HW.device
    ).unsqueeze(1)
    gain_N1H1 = (near_N111 + (far_N111 - near_N111) * depth_H1) * brightness_N111
    mean_N111 = images_N1HW.mean((1, 2, 3), keepdim=True)
    offset_N1H1 = (1 - contrast_N111) * mean_N111 * gain_N1H1
    return torch.addcmul(offset_N1H1, images_N1HW, contrast_N111 * gain_N1H1)


def _noise(like_N1HW: Tensor, draws_N: Tensor) -> Tensor:
    """Standard normal noise: each row is a window, at its own offset, of one fixed sequence."""
    pixels = like_N1HW.shape[1:].numel()
    windows = _noise_sequence(pixels + _NOISE_OFFSETS).to(like_N1HW).unfold(0, pixels, 1)
    offsets_N = (draws_N * _NOISE_OFFSETS).long()
    return windows[offsets_N].view(like_N1HW.shape)


@lru_cache(maxsize=2)
def _noise_sequence(length: int) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(0))


def _uniforms(seeds_N: Tensor, channels: int) -> Tensor:
    """Independent draws in [0, 1) of shape (channels, N), float32 with 24 random bits."""
    counter_C = torch.arange(1, channels + 1, dtype=torch.int64, device=seeds_N.device)
    bits_CN = _mix(seeds_N.unsqueeze(0) + (counter_C * _INCREMENT).unsqueeze(1))
    return _shift_right(bits_CN, 40).float() / (1 << 24)


def _mix(values: Tensor) -> Tensor:
    """One SplitMix64 step, elementwise on int64 with wrap-around."""
    mixed = values + _INCREMENT
    mixed = (mixed ^ _shift_right(mixed, 30)) * _MULTIPLIERS[0]
    mixed = (mixed ^ _shift_right(mixed, 27)) * _MULTIPLIERS[1]
    return mixed ^ _shift_right(mixed, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift; that of torch keeps the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(draws: Tensor, limit: float) -> Tensor:
    """Draws from [0, 1) spread over [-limit, limit)."""
    return (2 * draws - 1) * limit
