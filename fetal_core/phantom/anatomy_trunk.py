"""Axial planes of the fetal trunk, in a frame with the spine at +x and the front at -x."""

from __future__ import annotations

import numpy as np

from fetal_core.phantom.canvas import Pen, Pose
from fetal_core.phantom.curves import arc, bezier, closed, ellipse, ribbon, shrunk
from fetal_core.phantom.tissue import Tissue


def draw_abdomen(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    """Draw the abdomen (half axes in mm): stomach, umbilical vein, spine, great vessels."""
    _draw_body_wall(pen, rng, a, b, Tissue.SOLID)
    _draw_ribs(pen, rng, a, b, span=0.35)
    _draw_liver_vessels(pen, rng, a, b)
    draw_spine_axial(pen, rng, (0.78 * a, 0.0), 0.17 * b)
    for y in (-0.1, 0.12):
        pen.fill(ellipse((0.5 * a, y * b), (0.045 * a, 0.05 * b), n=16), Tissue.BLOOD)
    vein = bezier(
        [(-0.82 * a, 0.02 * b), (-0.3 * a, 0.0), (-0.05 * a, -0.04 * b), (0.06 * a, -0.4 * b)]
    )
    tube = ribbon(vein[4:], rng.uniform(0.10, 0.15) * b, taper=0.35)
    pen.fill(tube, Tissue.BLOOD)
    pen.line(closed(tube), 0.6, -34.0, floor=0.08)
    centre = (rng.uniform(0.0, 0.2) * a, rng.uniform(0.42, 0.52) * b)
    radii = (rng.uniform(0.2, 0.32) * a, rng.uniform(0.14, 0.23) * b)
    stomach = ellipse(centre, radii, rng.uniform(-0.5, 0.5), rng, 0.08, n=40)
    pen.fill(stomach, Tissue.FLUID)
    pen.line(closed(stomach), 0.7, -30.0, floor=0.08)


def draw_thorax(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    """Draw the thorax (half axes in mm) with the four-chamber view of the heart."""
    _draw_body_wall(pen, rng, a, b, Tissue.LUNG)
    _draw_ribs(pen, rng, a, b, span=0.85)
    draw_spine_axial(pen, rng, (0.8 * a, 0.0), 0.17 * b)
    pen.fill(ellipse((0.5 * a, 0.13 * b), (0.06 * a, 0.065 * b), n=20), Tissue.BLOOD)
    x, y = pen.pose.place(np.array([[-0.14 * a, rng.uniform(0.05, 0.2) * b]]))[0]
    turn = rng.uniform(0.5, 1.0)
    angle = pen.pose.angle + (-turn if pen.pose.mirrored else turn)
    heart = Pose((float(x), float(y)), angle, pen.pose.mirrored)
    _draw_heart(pen.at(heart), rng, rng.uniform(0.50, 0.60) * a)


def _draw_heart(pen: Pen, rng: np.random.Generator, r: float) -> None:
    """Draw four chambers about the crux: apex at -x, atria at +x."""
    outline = ellipse((0.0, 0.0), (1.12 * r, 0.86 * r), rng=rng, strength=0.04)
    pen.fill(outline, Tissue.MYOCARDIUM)
    pen.line(closed(outline), 0.8, -33.0, floor=0.1)
    wall = rng.uniform(0.12, 0.2) * r
    pen.fill(shrunk(outline, 1.0 - wall / r), Tissue.BLOOD)
    septum = bezier([(-1.0 * r, 0.0), (-0.4 * r, rng.normal(0.0, 0.06) * r), (0.16 * r, 0.0)])
    pen.rod(septum, rng.uniform(0.08, 0.15) * r, Tissue.MYOCARDIUM, -32.0, taper=0.3)
    septum_of_atria = bezier([(0.1 * r, 0.0), (0.95 * r, 0.02 * r)], 8)
    pen.rod(septum_of_atria, 0.06 * r, Tissue.MYOCARDIUM, -33.0)
    for side in (-1.0, 1.0):
        hinge = (rng.uniform(0.05, 0.2) * r, side * 0.75 * r)
        leaf = bezier([(0.16 * r, 0.0), (rng.uniform(-0.15, 0.1) * r, side * 0.4 * r), hinge], 10)
        pen.rod(leaf, rng.uniform(0.04, 0.08) * r, Tissue.MYOCARDIUM, -30.0, floor=0.3)
        muscle = ellipse((-0.55 * r, side * 0.48 * r), (0.16 * r, 0.07 * r), side * 0.4, n=12)
        pen.fill(muscle, Tissue.MYOCARDIUM)
    pen.fill(ellipse((0.16 * r, 0.0), (0.10 * r, 0.13 * r), n=12), Tissue.ECHOGENIC)


def draw_oblique_trunk(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    """Draw a trunk cut along its length: ribs in a row with their shadows, no landmark."""
    body = ellipse((0.0, 0.0), (a, b), rng=rng, strength=0.08)
    pen.fill(body * 1.08, Tissue.MUSCLE)
    pen.fill(body, Tissue.SOLID)
    pen.line(closed(body * 1.06), 1.0, -28.0)
    pen.fill(ellipse((-0.25 * a, 0.0), (0.3 * a, 0.8 * b), 0.0, rng, 0.1), Tissue.LUNG)
    for x in np.linspace(-0.8, 0.15, int(rng.integers(6, 10))):
        y = -0.8 * b * np.sqrt(1.0 - x**2)
        rib = bezier([(x * a - 1.6, y), (x * a + 1.6, y)], 4)
        pen.rod(rib, 1.8, Tissue.BONE, rng.uniform(-18.0, -10.0), floor=0.4)


def draw_spine_axial(
    pen: Pen, rng: np.random.Generator, centre: tuple[float, float], r: float
) -> None:
    """Draw a vertebra cut across: body and two laminae around the canal."""
    x, y = centre
    for dx, dy, size in ((-0.45, 0.0, 0.5), (0.5, -0.6, 0.34), (0.5, 0.6, 0.34)):
        blob = ellipse((x + dx * r, y + dy * r), (size * r, 1.1 * size * r), n=16)
        pen.fill(blob, Tissue.BONE)
        pen.line(closed(blob), 0.8, rng.uniform(-22.0, -13.0), floor=0.2)
    pen.fill(ellipse((x + 0.3 * r, y), (0.3 * r, 0.3 * r), n=12), Tissue.FLUID)


def _draw_body_wall(pen: Pen, rng: np.random.Generator, a: float, b: float, inside: Tissue) -> None:
    outline = ellipse((0.0, 0.0), (a, b), rng=rng, strength=0.03, n=72)
    skin = rng.uniform(1.05, 1.10)
    pen.fill(outline * skin, Tissue.FAT)
    pen.line(closed(outline * skin), 0.9, rng.uniform(-32.0, -22.0), floor=0.06)
    pen.fill(outline * 0.98, Tissue.MUSCLE)
    pen.fill(outline * 0.94, inside)
    pen.line(closed(outline * 0.95), 0.8, rng.uniform(-34.0, -25.0), floor=0.06)


def _draw_ribs(pen: Pen, rng: np.random.Generator, a: float, b: float, span: float) -> None:
    for side in (-1.0, 1.0):
        start = side * rng.uniform(0.35, 0.6)
        for _ in range(2):
            stop = start + side * rng.uniform(0.35, 0.75) * span * 1.6
            rib = arc((0.0, 0.0), (0.93 * a, 0.93 * b), start, stop)
            pen.rod(rib, rng.uniform(1.2, 2.0), Tissue.SKULL, rng.uniform(-22.0, -11.0), taper=0.6)
            start = stop + side * rng.uniform(0.2, 0.5)


def _draw_liver_vessels(pen: Pen, rng: np.random.Generator, a: float, b: float) -> None:
    for _ in range(int(rng.integers(4, 10))):
        x, y = rng.uniform(-0.6, 0.4) * a, rng.uniform(-0.75, 0.6) * b
        length, turn = rng.uniform(0.03, 0.12) * a, rng.uniform(-1.2, 1.2)
        end = (x + length * np.cos(turn), y + length * np.sin(turn))
        pen.fill(ribbon(bezier([(x, y), end], 6), rng.uniform(0.9, 2.0), 0.5), Tissue.BLOOD)
    for _ in range(8):
        x, y = rng.uniform(-0.6, 0.4) * a, rng.uniform(-0.75, 0.7) * b
        pen.line(bezier([(x - 0.05 * a, y), (x + 0.05 * a, y)], 4), 0.7, -31.0)
