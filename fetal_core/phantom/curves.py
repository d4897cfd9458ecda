"""Analytic outlines in millimetres: every function returns points of shape (N, 2), (x, y)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]


def wobble(rng: np.random.Generator, strength: float, n: int) -> npt.NDArray[np.float64]:
    """Return ``n`` radial factors around 1 made of the harmonics 2 to 5 of a closed curve."""
    theta = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    factors = np.ones(n)
    for harmonic in range(2, 6):
        phase = rng.uniform(0.0, 2 * np.pi)
        factors += strength / harmonic * rng.normal() * np.cos(harmonic * theta + phase)
    return factors


def ellipse(
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float = 0.0,
    rng: np.random.Generator | None = None,
    strength: float = 0.0,
    n: int = 64,
) -> Points:
    """Return a closed ellipse, its outline warped by `wobble` when a generator is given."""
    theta = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    factors = wobble(rng, strength, n) if rng is not None else np.ones(n)
    local = np.stack([radii[0] * np.cos(theta), radii[1] * np.sin(theta)], axis=1)
    return moved(rotate(local * factors[:, None], angle), *centre)


def arc(
    centre: tuple[float, float], radii: tuple[float, float], start: float, stop: float, n: int = 24
) -> Points:
    """Return the part of an ellipse between two parameter angles in radians."""
    theta = np.linspace(start, stop, n)
    xy = np.stack([radii[0] * np.cos(theta), radii[1] * np.sin(theta)], axis=1)
    return moved(xy, *centre)


def bezier(controls: Sequence[tuple[float, float]], n: int = 24) -> Points:
    """Return the Bezier curve of two to four control points (de Casteljau)."""
    t = np.linspace(0.0, 1.0, n)[:, None]
    levels = [np.broadcast_to(np.asarray(point, dtype=float), (n, 2)) for point in controls]
    while len(levels) > 1:
        levels = [(1 - t) * a + t * b for a, b in pairwise(levels)]
    return np.array(levels[0])


def normals(path: Points) -> Points:
    """Return unit normals of shape (N, 2) of an open path."""
    tangent = np.gradient(path, axis=0)
    length = np.maximum(np.hypot(tangent[:, 0], tangent[:, 1]), 1e-9)
    return np.asarray(np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) / length[:, None])


def ribbon(path: Points, width_mm: float, taper: float = 0.0) -> Points:
    """Return the closed outline of a path drawn ``width_mm`` wide; ``taper`` thins its ends."""
    along = np.linspace(-1.0, 1.0, len(path))
    half = 0.5 * width_mm * (1.0 - taper * along**2)
    offset = normals(path) * half[:, None]
    return np.concatenate([path + offset, (path - offset)[::-1]])


def rotate(points: Points, angle: float) -> Points:
    """Rotate points about the origin by ``angle`` radians, from x towards y."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]))


def moved(points: Points, x: float, y: float) -> Points:
    """Return points displaced by (x, y)."""
    return np.asarray(points + np.array([x, y]))


def shrunk(outline: Points, factor: float) -> Points:
    """Return an outline scaled about its middle."""
    middle = outline.mean(axis=0)
    return np.asarray((outline - middle) * factor + middle)


def closed(points: Points) -> Points:
    """Return an outline with its first point repeated at the end."""
    return np.concatenate([points, points[:1]])
