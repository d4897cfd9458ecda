"""Axial planes of the fetal head, in a frame with the face at -x and the midline at y = 0."""

from __future__ import annotations

import numpy as np

from fetal_core.phantom.canvas import Pen
from fetal_core.phantom.curves import arc, bezier, closed, ellipse, moved, ribbon, shrunk
from fetal_core.phantom.tissue import Tissue


def draw_brain(pen: Pen, rng: np.random.Generator, a: float, b: float, plane: str) -> None:
    """Draw a head of half length ``a`` and half width ``b`` (mm) at a brain plane."""
    _draw_skull(pen, rng, a, b)
    _draw_sulci(pen, rng, a, b)
    if plane == "Other":
        _draw_skull_base(pen, rng, a, b)
        return
    _draw_midline(pen, rng, a, b)
    if plane == "Trans-cerebellum":
        _draw_cerebellum(pen, rng, a, b)
    elif plane == "Trans-ventricular":
        _draw_ventricles(pen, rng, a, b)
    else:
        _draw_far_choroid(pen, rng, a, b)
    if plane != "Trans-ventricular":
        _draw_thalami(pen, rng, a, b)


def _draw_skull(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    thick = max(1.6, 0.045 * b + rng.uniform(0.0, 0.9))
    outline = ellipse((0.0, 0.0), (a, b), rng=rng, strength=0.02, n=80)
    pen.fill(outline * (1.0 + rng.uniform(2.0, 4.0) / b), Tissue.MUSCLE)
    pen.fill(outline, Tissue.SKULL)
    pen.fill(outline * (1.0 - thick / b), Tissue.BRAIN)
    ring = closed(outline * (1.0 - 0.5 * thick / b))
    pen.line(ring, thick, rng.uniform(-13.0, -6.0), floor=0.10)


def _draw_sulci(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    for _ in range(int(rng.integers(30, 60))):
        radius, theta = rng.uniform(0.25, 0.9), rng.uniform(0.0, 2 * np.pi)
        x, y = radius * a * np.cos(theta), radius * b * np.sin(theta)
        length, bend = rng.uniform(0.04, 0.13) * a, rng.normal(0.0, 0.05) * b
        tilt = rng.normal(0.0, 0.35) * length
        path = bezier([(x - length, y - tilt), (x, y + bend), (x + length, y + tilt)], 6)
        pen.line(path, rng.uniform(0.3, 0.9), rng.uniform(-40.0, -26.0), floor=0.1)


def _draw_midline(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    level_db, y = rng.uniform(-28.0, -20.0), 0.02 * b * rng.normal()
    pen.line(bezier([(-0.92 * a, 0.0), (-0.7 * a, y), (-0.5 * a, 0.0)], 8), 0.9, level_db)
    pen.line(bezier([(-0.18 * a, 0.0), (0.2 * a, -y), (0.45 * a, 0.0)], 10), 0.9, level_db)
    half_length, half_width = 0.14 * a, rng.uniform(0.07, 0.10) * b
    box = ellipse((-0.35 * a, 0.0), (half_length, half_width), n=24)
    pen.fill(box * np.array([1.0, 1.15]), Tissue.ECHOGENIC)
    pen.fill(box, Tissue.FLUID)
    for side in (-1.0, 1.0):
        wall = bezier([(-0.48 * a, side * half_width), (-0.22 * a, side * half_width)], 6)
        pen.line(wall, 0.9, level_db + 2.0)


def _draw_thalami(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    centre_x = rng.uniform(-0.02, 0.06) * a
    for side in (-1.0, 1.0):
        lozenge = np.array(
            [
                bezier([(-0.17, 0.03), (-0.08, 0.34), (0.10, 0.36), (0.21, 0.20)], 12),
                bezier([(0.21, 0.20), (0.19, 0.06), (0.05, 0.03), (-0.17, 0.03)], 12),
            ]
        ).reshape(-1, 2) * np.array([a, side * b]) + np.array([centre_x, 0.0])
        pen.fill(shrunk(lozenge, 1.15), Tissue.BRAIN)
        pen.fill(lozenge, Tissue.THALAMUS)
        pen.line(closed(lozenge), 0.7, rng.uniform(-40.0, -32.0), floor=0.2)
    pen.line(bezier([(centre_x - 0.15 * a, 0.0), (centre_x + 0.2 * a, 0.0)], 6), 1.2, -24.0)


def _draw_far_choroid(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    for side in (-1.0, 1.0):
        path = bezier([(0.05 * a, side * 0.5 * b), (0.4 * a, side * 0.62 * b)], 8)
        pen.rod(path, rng.uniform(0.04, 0.12) * b, Tissue.ECHOGENIC, -34.0, taper=0.8)
        fissure = bezier(
            [(-0.25 * a, side * 0.6 * b), (-0.05 * a, side * 0.72 * b), (0.2 * a, side * 0.62 * b)]
        )
        pen.line(fissure, 1.1, rng.uniform(-30.0, -22.0), floor=0.25)


def _draw_cerebellum(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    x, lobe = rng.uniform(0.52, 0.58) * a, rng.uniform(0.25, 0.30) * b
    pen.fill(ellipse((x + 0.24 * a, 0.0), (0.14 * a, 0.50 * b), n=40), Tissue.FLUID)
    for side in (-1.0, 1.0):
        outline = ellipse((x, side * 0.92 * lobe), (0.82 * lobe, lobe), rng=rng, strength=0.03)
        pen.fill(outline, Tissue.ECHOGENIC)
        pen.fill(shrunk(outline, 0.86), Tissue.BRAIN)
        pen.line(closed(outline), 1.0, rng.uniform(-30.0, -22.0), floor=0.25)
        for turn in (-0.35, 0.0, 0.35):
            folium = arc((x + turn * lobe, side * 0.95 * lobe), (0.2 * lobe, 0.6 * lobe), -1.2, 1.2)
            pen.line(folium, 0.5, -37.0, floor=0.3)
    pen.fill(ellipse((x + 0.02 * a, 0.0), (0.55 * lobe, 0.28 * lobe), n=24), Tissue.ECHOGENIC)


def _draw_ventricles(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    width = rng.uniform(0.17, 0.28) * b
    for side in (-1.0, 1.0):
        atrium = bezier(
            [(-0.22 * a, side * 0.24 * b), (0.2 * a, side * 0.30 * b), (0.62 * a, side * 0.56 * b)]
        )
        body = ribbon(atrium, width, taper=0.6)
        pen.fill(body, Tissue.FLUID)
        pen.line(closed(body), 1.0, rng.uniform(-30.0, -21.0), floor=0.15)
        plexus = moved(atrium[8:21], 0.0, side * 0.02 * b)
        pen.fill(ribbon(plexus, 0.72 * width, taper=0.5), Tissue.ECHOGENIC)
        horn = bezier([(-0.62 * a, side * 0.24 * b), (-0.4 * a, side * 0.16 * b)], 8)
        pen.fill(ribbon(horn, 0.6 * width, taper=0.7), Tissue.FLUID)
        pen.line(moved(horn, 0.0, side * 0.3 * width), 0.8, -26.0, floor=0.25)


def _draw_skull_base(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    for side in (-1.0, 1.0):
        orbit = ellipse((-0.6 * a, side * 0.38 * b), (0.2 * a, 0.24 * b), n=32)
        pen.fill(orbit, Tissue.FLUID)
        pen.line(closed(orbit), 1.4, rng.uniform(-20.0, -12.0), floor=0.3)
        ridge = bezier([(-0.1 * a, side * 0.08 * b), (0.2 * a, side * 0.75 * b)], 10)
        pen.rod(ridge, 0.1 * b, Tissue.SKULL, rng.uniform(-20.0, -14.0), taper=0.5)
    pen.rod(bezier([(-0.95 * a, 0.0), (-0.45 * a, 0.0)], 8), 0.1 * b, Tissue.ECHOGENIC, -18.0)
