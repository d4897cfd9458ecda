"""The mother: abdominal wall, uterus, placenta, fluid; the cervix; a neck vessel."""

from __future__ import annotations

import numpy as np

from fetal_core.phantom.anatomy_limb import draw_limb_section
from fetal_core.phantom.canvas import Pen
from fetal_core.phantom.curves import Points, arc, bezier, closed, ellipse, moved, ribbon
from fetal_core.phantom.machines import Patient
from fetal_core.phantom.tissue import Tissue


def draw_uterus(
    pen: Pen,
    rng: np.random.Generator,
    patient: Patient,
    centre: tuple[float, float],
    radii: tuple[float, float],
) -> None:
    """Draw what surrounds a fetus at ``centre`` with half extents ``radii`` (mm)."""
    x, y = centre
    wall = max(4.0, min(patient.wall_mm, y - 0.9 * radii[1]))
    room = 1.06 + 0.5 * patient.fluid * rng.uniform(0.4, 1.3)
    cavity = ellipse(
        (x + rng.normal(0.0, 0.15) * radii[0], 0.5 * (wall + 4.0 + y + room * radii[1])),
        (radii[0] * room * rng.uniform(1.0, 1.5), 0.5 * (y + room * radii[1] - wall - 4.0)),
        rng.normal(0.0, 0.12),
        rng,
        0.10,
    )
    placenta = {"anterior": -0.8, "posterior": 0.85, "lateral": 0.0}[patient.placenta]
    shift = 1.2 * radii[0] if patient.placenta == "lateral" else 0.0
    bed = ellipse(
        (x + shift + rng.normal(0.0, 0.3) * radii[0], y + placenta * room * radii[1]),
        (rng.uniform(0.6, 1.2) * radii[0], rng.uniform(0.35, 0.6) * radii[1]),
        rng.normal(0.0, 0.2),
        rng,
        0.12,
    )
    pen.fill(cavity, Tissue.FLUID)
    pen.line(closed(cavity), 1.0, rng.uniform(-34.0, -22.0), floor=0.03)
    pen.fill(bed, Tissue.PLACENTA)
    pen.line(closed(bed), 0.8, rng.uniform(-38.0, -27.0), floor=0.03)
    for _ in range(int(rng.integers(0, 4))):
        angle = rng.uniform(0.0, 2 * np.pi)
        spot = (x + 1.15 * radii[0] * np.cos(angle), y + 1.15 * radii[1] * np.sin(angle))
        draw_limb_section(pen, rng, spot, rng.uniform(5.0, 12.0))


def draw_abdominal_wall(pen: Pen, rng: np.random.Generator, wall_mm: float) -> None:
    """Draw skin, fat and muscle over the whole width, parallel to the probe's face."""
    radius = pen.layers.grid.geometry.r_near * pen.layers.grid.unit_mm
    levels = np.cumsum(rng.dirichlet([4.0, 5.0, 4.0])) * wall_mm
    top = -2.0
    for bottom, tissue in zip(levels, (Tissue.FAT, Tissue.MUSCLE, Tissue.UTERUS), strict=True):
        pen.fill(ribbon(_concentric(radius, 0.5 * (top + bottom)), bottom - top), tissue)
        pen.line(_concentric(radius, bottom), 0.8, rng.uniform(-36.0, -24.0))
        top = bottom


def _concentric(face_radius_mm: float, depth_mm: float) -> Points:
    """Return the points at one depth below the probe's face."""
    radius = face_radius_mm + depth_mm
    return arc((0.0, -face_radius_mm), (radius, radius), 0.85 * np.pi, 0.15 * np.pi, n=40)


def draw_cervix(pen: Pen, rng: np.random.Generator, size: float) -> None:
    """Draw a transvaginal view: the canal in its wedge, the bladder and the fetal head."""
    inner = (rng.uniform(0.15, 0.38) * size, rng.uniform(0.46, 0.64) * size)
    _draw_lower_segment(pen, rng, size, inner)
    sag = rng.uniform(0.22, 0.5) * size
    canal = bezier([(-0.5 * size, rng.uniform(0.2, 0.4) * size), (-0.15 * size, sag), inner])
    pen.fill(ribbon(canal, rng.uniform(0.26, 0.36) * size, taper=0.3), Tissue.CERVIX)
    pen.fill(ribbon(canal[2:], rng.uniform(0.09, 0.15) * size, taper=0.3), Tissue.MUSCLE)
    pen.rod(canal[4:], rng.uniform(0.012, 0.035) * size, Tissue.BLOOD, -40.0)
    for side in (-1.0, 1.0):
        wall = moved(canal, 0.0, side * 0.025 * size)
        pen.line(wall, 0.5, rng.uniform(-38.0, -28.0), floor=0.1)
    for _ in range(int(rng.integers(4, 12))):
        x, y = canal[int(rng.integers(4, 22))] + rng.normal(0.0, 0.08, size=2) * size
        streak = bezier([(x - 0.05 * size, y), (x, y + 0.01 * size), (x + 0.05 * size, y)], 6)
        pen.line(streak, 0.6, rng.uniform(-36.0, -24.0), floor=0.1)


def _draw_lower_segment(
    pen: Pen, rng: np.random.Generator, size: float, inner: tuple[float, float]
) -> None:
    """Draw what lies around the canal: far wall, fluid at the inner mouth, bladder, head."""
    _draw_bands(pen, rng, size)
    pool = ellipse(
        (inner[0] + rng.uniform(0.12, 0.3) * size, inner[1] + 0.06 * size),
        (rng.uniform(0.16, 0.4) * size, rng.uniform(0.08, 0.3) * size),
        rng.uniform(0.2, 1.2),
        rng,
        0.2,
    )
    pen.fill(pool, Tissue.FLUID)
    if rng.random() < 0.5:
        bladder = ellipse(
            (rng.uniform(0.2, 0.5) * size, rng.uniform(0.1, 0.18) * size),
            (rng.uniform(0.15, 0.32) * size, rng.uniform(0.04, 0.1) * size),
            0.3,
            rng,
            0.15,
        )
        pen.fill(bladder, Tissue.FLUID)
    if rng.random() < 0.75:
        centre = (rng.uniform(0.7, 1.05) * size, rng.uniform(0.55, 1.05) * size)
        radius = rng.uniform(0.3, 0.5) * size
        head = ellipse((0.0, 0.0), (radius, 0.88 * radius), rng.uniform(0.0, 3.0), rng, 0.04)
        pen.fill(moved(head * 1.07, *centre), Tissue.FAT)
        pen.fill(moved(head, *centre), Tissue.SKULL)
        pen.fill(moved(head * 0.94, *centre), Tissue.BRAIN)
        pen.line(closed(moved(head * 0.97, *centre)), 1.8, rng.uniform(-18.0, -8.0), floor=0.02)


def _draw_bands(pen: Pen, rng: np.random.Generator, size: float) -> None:
    """Draw the layers of muscle and fat that cross the field at all depths."""
    for _ in range(int(rng.integers(5, 10))):
        y, slope = rng.uniform(0.1, 1.1) * size, rng.normal(0.0, 0.25) * size
        ends = [(-1.1 * size, y - slope), (0.0, y + rng.normal(0.0, 0.1) * size)]
        path = bezier([*ends, (1.1 * size, y + slope)])
        tissue = (Tissue.FAT, Tissue.MUSCLE, Tissue.CERVIX)[int(rng.integers(3))]
        pen.fill(ribbon(path, rng.uniform(0.04, 0.22) * size, taper=0.9), tissue)
        edge = moved(path[4:20], 0.0, rng.uniform(-0.05, 0.05) * size)
        pen.line(edge, 0.9, rng.uniform(-40.0, -25.0), floor=0.03)


def draw_vessel(pen: Pen, rng: np.random.Generator, size: float) -> None:
    """Draw an artery along its length between two bright walls."""
    half, depth = rng.uniform(0.13, 0.2) * size, rng.uniform(0.36, 0.5) * size
    ends = [(-0.7 * size, depth), (0.0, depth + rng.normal(0.0, 0.06) * size), (0.7 * size, depth)]
    path = bezier(ends)
    for shift in rng.uniform(-0.3, -0.2, size=2):
        pen.line(moved(path, 0.0, shift * size), 0.6, -28.0)
    pen.fill(ribbon(path, 2.0 * half), Tissue.BLOOD)
    for side in (-1.0, 1.0):
        pen.line(moved(path, 0.0, side * half), 0.5, rng.uniform(-28.0, -18.0))
        pen.line(moved(path, 0.0, side * (half + 1.2)), 0.4, -29.0)
