"""Probe geometry: the polar grid of depth and beams, and its conversion to the screen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fetal_core.phantom.curves import Points

_Float = TypeVar("_Float", np.float32, np.float64)


@dataclass(frozen=True)
class Geometry:
    """Where the field of view lies on the screen; lengths are fractions of the screen's height.

    Attributes:
        width_px, height_px: size of the screen.
        apex_x, apex_y: centre of curvature, x from the middle and y from the top of the screen;
            of a linear array: the middle of its face.
        r_near, r_far: radii of the probe's face and of the deepest echo (linear: depths).
        half_angle: of the sector in radians (linear: half the width of the array).
        linear: a rectangular instead of a convex field.
        n_depth, n_beams: samples of the polar grid.
    """

    width_px: int
    height_px: int
    apex_x: float
    apex_y: float
    r_near: float
    r_far: float
    half_angle: float
    linear: bool = False
    n_depth: int = 400
    n_beams: int = 240


@dataclass(frozen=True)
class PolarGrid:
    """A geometry at a scale: maps millimetres on the screen to samples of the polar grid.

    The origin is the middle of the probe's face, y points away from the probe.
    """

    geometry: Geometry
    mm_per_px: float

    @property
    def unit_mm(self) -> float:
        """Millimetres in one screen height."""
        return self.mm_per_px * self.geometry.height_px

    @property
    def depth_step_mm(self) -> float:
        """Distance of two samples along a beam."""
        g = self.geometry
        return (g.r_far - g.r_near) * self.unit_mm / (g.n_depth - 1)

    @property
    def origin_screen(self) -> tuple[float, float]:
        """The probe's face in screen heights, x from the middle and y from the top."""
        g = self.geometry
        return g.apex_x, g.apex_y + g.r_near

    def from_screen(self, x: float, y: float) -> tuple[float, float]:
        """Return millimetres of a point in screen heights (x from the middle, y from the top)."""
        x0, y0 = self.origin_screen
        return (x - x0) * self.unit_mm, (y - y0) * self.unit_mm

    def to_grid(self, points_mm: Points) -> Points:
        """Return (beam, depth) sample coordinates of shape (N, 2)."""
        g = self.geometry
        r, angle = _polar(g, points_mm[:, 0] / self.unit_mm, points_mm[:, 1] / self.unit_mm)
        beam = (angle / g.half_angle + 1.0) * 0.5 * (g.n_beams - 1)
        depth = (r - g.r_near) / (g.r_far - g.r_near) * (g.n_depth - 1)
        return np.stack([beam, depth], axis=1)

    def beam_direction(self, points_mm: Points) -> Points:
        """Return the unit vectors along the beams through the points, shape (N, 2)."""
        if self.geometry.linear:
            return np.broadcast_to(np.array([0.0, 1.0]), points_mm.shape)
        ray = points_mm + np.array([0.0, self.geometry.r_near * self.unit_mm])
        return np.asarray(ray / np.maximum(np.hypot(ray[:, 0], ray[:, 1]), 1e-9)[:, None])


def _polar(
    g: Geometry, x: npt.NDArray[_Float], y: npt.NDArray[_Float]
) -> tuple[npt.NDArray[_Float], npt.NDArray[_Float]]:
    """Return radius and angle of points in screen heights about the middle of the face."""
    if g.linear:
        return y + g.r_near, x
    below_apex = y + g.r_near
    return np.hypot(x, below_apex), np.arctan2(x, below_apex)


@lru_cache(maxsize=12)
def screen_sampler(g: Geometry) -> tuple[npt.NDArray[np.int64], sparse.csr_array]:
    """Return the flat pixels inside the field of view and the bilinear matrix that fills them."""
    x = (np.arange(g.width_px) - 0.5 * (g.width_px - 1)) / g.height_px - g.apex_x
    y = np.arange(g.height_px) / g.height_px - g.apex_y - g.r_near
    xx, yy = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    r, angle = _polar(g, xx.ravel(), yy.ravel())
    beam = (angle / g.half_angle + 1.0) * 0.5 * (g.n_beams - 1)
    depth = (r - g.r_near) / (g.r_far - g.r_near) * (g.n_depth - 1)
    inside = (beam >= 0) & (beam < g.n_beams - 1) & (depth >= 0) & (depth < g.n_depth - 1)
    pixels = np.flatnonzero(inside)
    beam, depth = beam[pixels], depth[pixels]
    column, row = beam.astype(np.int32), depth.astype(np.int32)
    u, v = (beam - column).astype(np.float32), (depth - row).astype(np.float32)
    first = row * g.n_beams + column
    indices = np.stack([first, first + 1, first + g.n_beams, first + g.n_beams + 1], axis=1)
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v], axis=1)
    starts = np.arange(len(pixels) + 1, dtype=np.int32) * 4
    matrix = sparse.csr_array(
        (weights.ravel(), indices.ravel().astype(np.int32), starts),
        shape=(len(pixels), g.n_depth * g.n_beams),
    )
    return pixels, matrix


def scan_convert(polar: npt.NDArray[np.float32], g: Geometry) -> npt.NDArray[np.uint8]:
    """Return the screen (height_px, width_px) of a polar image in [0, 255], black outside."""
    pixels, matrix = screen_sampler(g)
    screen = np.zeros(g.height_px * g.width_px, dtype=np.uint8)
    screen[pixels] = (matrix @ polar.ravel()).astype(np.uint8)
    return screen.reshape(g.height_px, g.width_px)
