"""Pulse-echo model on the polar grid: speckle, attenuation, envelope and log compression."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft, ndimage

FloatMap = npt.NDArray[np.float32]
ComplexMap = npt.NDArray[np.complex64]

_DB_TO_NEPER = float(np.log(10.0) / 20.0)


def scatterers(rng: np.random.Generator, shape: tuple[int, int]) -> ComplexMap:
    """Return circular complex Gaussian scatterers of unit power, shape (n_depth, n_beams)."""
    pairs = rng.standard_normal((*shape, 2), dtype=np.float32)
    return pairs.view(np.complex64)[..., 0] * np.float32(np.sqrt(0.5))


def envelope(
    field: ComplexMap,
    axial_sigma: float,
    lateral_sigma: npt.NDArray[np.float64],
    side_lobe: float = 0.0,
) -> FloatMap:
    """Blur a complex field by the point-spread function and detect its envelope.

    A uniform Gaussian field gives fully developed speckle: a Rayleigh envelope with mean/std 1.91
    (Wagner et al., IEEE Trans. Sonics Ultrason. 30, 1983). The power of such a field is kept.

    Args:
        field: complex echoes, shape (n_depth, n_beams).
        axial_sigma: standard deviation of the pulse in samples.
        lateral_sigma: standard deviation of the beam at each depth in samples, shape (n_depth,).
        side_lobe: share of the beam that spreads six times as wide.

    Returns:
        Magnitudes of shape (n_depth, n_beams), float32.
    """
    n_beams = field.shape[1]
    parts = np.ascontiguousarray(field).view(np.float32)
    pulsed = ndimage.gaussian_filter1d(parts, axial_sigma, axis=0, truncate=3.0)
    padded = fft.next_fast_len(n_beams + 16)
    frequency = fft.fftfreq(padded)
    exponent = -2.0 * (np.pi * lateral_sigma[:, None] * frequency[None, :]) ** 2
    transfer = (1.0 - side_lobe) * np.exp(exponent) + side_lobe * np.exp(36.0 * exponent)
    spectrum = fft.fft(pulsed.view(np.complex64), padded, axis=1)
    spectrum *= transfer.astype(np.float32)
    blurred = fft.ifft(spectrum, axis=1, overwrite_x=True)[:, :n_beams]
    axial_power = 1.0 / (2.0 * np.sqrt(np.pi) * axial_sigma)
    lateral_power = np.mean(transfer**2, axis=1)
    scale = 1.0 / np.sqrt(axial_power * lateral_power)
    return np.asarray(np.abs(blurred) * scale[:, None], dtype=np.float32)


def transmission_db(
    attenuation_db_per_mm: FloatMap, depth_step_mm: float, compensation_db_per_mm: float
) -> FloatMap:
    """Return the gain in dB at each sample after the tissue in front and the TGC.

    Bone in front casts a shadow, fluid in front gives enhancement. A sample's own attenuation
    counts half.
    """
    lost = np.cumsum(attenuation_db_per_mm, axis=0) - 0.5 * attenuation_db_per_mm
    depth = np.arange(len(lost), dtype=np.float32)[:, None]
    return np.asarray((compensation_db_per_mm * depth - lost) * depth_step_mm, dtype=np.float32)


def amplitude(level_db: FloatMap) -> FloatMap:
    """Return amplitudes of levels in dB."""
    return np.asarray(np.exp(level_db * np.float32(_DB_TO_NEPER)))


def log_compress(magnitude: FloatMap, dynamic_range_db: float, gamma: float) -> FloatMap:
    """Map magnitudes (1 = full scale) to grey levels in [0, 255] over a dynamic range in dB."""
    level_db = np.log(np.maximum(magnitude, 1e-9)) * np.float32(1.0 / _DB_TO_NEPER)
    grey = np.clip(1.0 + level_db / np.float32(dynamic_range_db), 0.0, 1.0)
    return np.asarray(255.0 * grey ** np.float32(gamma), dtype=np.float32)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]
) -> FloatMap:
    """Return unit-variance noise of shape (n_depth, n_beams) with about ``cells`` bumps."""
    coarse = Image.fromarray(rng.standard_normal(cells, dtype=np.float32))
    fine = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    return np.asarray(fine / max(float(fine.std()), 1e-6), dtype=np.float32)
