"""Long bones, the spine along its length and the face in profile."""

from __future__ import annotations

import numpy as np

from fetal_core.phantom.canvas import Pen, Pose
from fetal_core.phantom.curves import Points, bezier, closed, ellipse, moved, ribbon, shrunk
from fetal_core.phantom.tissue import Tissue

# face in profile towards -x from the crown to the nape, in half heights of the head
_FACE_X = (0.35, -0.25, -0.62, -0.68, -0.92, -0.72, -0.82, -0.7, -0.78, -0.6, -0.62, -0.3, 0.2)
_FACE_Y = (-0.95, -0.88, -0.5, -0.1, 0.12, 0.24, 0.36, 0.44, 0.56, 0.66, 0.84, 0.88, 0.7)
_FACE = np.array([(*_FACE_X, 0.75, 0.95, 0.8), (*_FACE_Y, 0.6, 0.0, -0.6)]).T
_FACE_BONES = (
    ((-0.62, 0.02), (-0.84, 0.1)),
    ((-0.7, 0.3), (-0.2, 0.34)),
    ((-0.58, 0.7), (-0.15, 0.62)),
)


def draw_femur(pen: Pen, rng: np.random.Generator, length: float) -> None:
    """Draw a thigh around one rod of ``length`` mm along x, its shadow below."""
    half, bow = 0.5 * length, rng.uniform(-0.03, 0.10) * length
    thick = rng.uniform(0.34, 0.5) * length
    path = bezier([(-0.95 * length, 0.1 * bow), (0.0, bow), (0.85 * length, 0.1 * bow)])
    _draw_soft_tissue(pen, rng, path, thick)
    bone = bezier([(-half, bow), (0.0, -bow), (half, bow)])
    for end in (-1.0, 1.0):
        joint = ellipse((end * 1.08 * half, bow), (0.13 * length, 0.11 * length), n=24)
        pen.fill(joint, Tissue.CARTILAGE)
        pen.line(closed(joint), 0.7, -38.0)
    if rng.random() < 0.35:
        far = moved(path, rng.normal(0.0, 0.2) * length, rng.uniform(0.5, 0.75) * length)
        _draw_soft_tissue(pen, rng, far, 0.8 * thick)
        pen.rod(far[6:18], 0.03 * length, Tissue.SKULL, rng.uniform(-24.0, -14.0), taper=0.4)
    width = rng.uniform(0.04, 0.065) * length
    pen.rod(bone, width, Tissue.BONE, rng.uniform(-13.0, -6.0), floor=0.2, taper=0.35)


def draw_limb(pen: Pen, rng: np.random.Generator, length: float) -> None:
    """Draw a forearm or lower leg: two thin rods side by side and the small bones of a hand."""
    path = bezier([(-0.8 * length, 0.0), (0.0, 0.05 * length), (0.9 * length, 0.0)])
    _draw_soft_tissue(pen, rng, path, rng.uniform(0.32, 0.45) * length)
    for side in (-1.0, 1.0):
        y = side * rng.uniform(0.07, 0.10) * length
        bone = bezier([(-0.42 * length, 0.8 * y), (0.0, 1.2 * y), (0.4 * length, y)])
        pen.rod(bone, 0.04 * length, Tissue.SKULL, rng.uniform(-16.0, -8.0), floor=0.2, taper=0.3)
    for finger in range(int(rng.integers(4, 6))):
        y = (finger - 2.0) * 0.075 * length
        for x in (0.62, 0.82):
            piece = bezier([(x * length, y), ((x + 0.13) * length, 1.15 * y)], 4)
            pen.rod(piece, 0.035 * length, Tissue.SKULL, rng.uniform(-22.0, -12.0), floor=0.3)


def draw_spine(pen: Pen, rng: np.random.Generator, length: float) -> None:
    """Draw a spine along x: two rows of ossification centres between muscle and trunk."""
    depth = 0.32 * length
    pen.fill(ellipse((0.0, depth * 0.6), (0.62 * length, depth), 0.0, rng, 0.05), Tissue.SOLID)
    pen.rod(
        bezier([(-0.6 * length, -0.02 * length), (0.0, -0.1 * length), (0.6 * length, 0.0)]),
        0.1 * length,
        Tissue.MUSCLE,
        -60.0,
        taper=0.4,
    )
    bow, count = rng.uniform(-0.05, 0.08) * length, int(rng.integers(11, 18))
    for row, gap in ((0.0, 0.0), (1.0, rng.uniform(0.05, 0.075) * length)):
        for x in np.linspace(-0.52, 0.52, count):
            y = bow * (1.0 - 4.0 * x**2) + gap
            half = 0.30 * length / count
            piece = bezier([(x * length - half, y), (x * length + half, y)], 4)
            width = (0.02 + 0.012 * row) * length
            pen.rod(piece, width, Tissue.SKULL, rng.uniform(-20.0, -11.0), floor=0.3)


def draw_profile(pen: Pen, rng: np.random.Generator, size: float) -> None:
    """Draw a face in profile looking to -x: forehead, nose, lips, chin, and the chest below."""
    pen.fill(
        ellipse((1.0 * size, 0.75 * size), (0.8 * size, 0.6 * size), 0.3, rng, 0.05), Tissue.LUNG
    )
    face = _FACE * size
    pen.fill(face, Tissue.MUSCLE)
    pen.line(closed(face), 0.9, rng.uniform(-30.0, -22.0), floor=0.15)
    vault = ellipse((0.15 * size, -0.25 * size), (0.68 * size, 0.58 * size), n=48)
    pen.fill(vault, Tissue.SKULL)
    pen.fill(shrunk(vault, 0.93), Tissue.BRAIN)
    pen.line(closed(vault), 0.04 * size, rng.uniform(-14.0, -7.0), floor=0.1)
    for ends in _FACE_BONES:
        level_db = rng.uniform(-18.0, -12.0)
        pen.rod(bezier(ends, 6) * size, 0.045 * size, Tissue.SKULL, level_db, floor=0.3)


def draw_limb_section(
    pen: Pen, rng: np.random.Generator, centre: tuple[float, float], radius: float
) -> None:
    """Draw a limb cut across, somewhere in the fluid: a disc with a bright core."""
    pen = pen.at(Pose(centre))
    disc = ellipse((0.0, 0.0), (radius, 0.8 * radius), 0.0, rng, 0.08, n=32)
    pen.fill(disc, Tissue.MUSCLE)
    pen.line(closed(disc), 0.8, rng.uniform(-34.0, -24.0))
    core = ellipse((0.0, 0.0), (0.25 * radius, 0.2 * radius), n=12)
    pen.fill(core, Tissue.BONE)
    pen.line(closed(core), 0.8, rng.uniform(-22.0, -12.0))


def draw_loose_parts(pen: Pen, rng: np.random.Generator, size: float) -> None:
    """Draw limbs and cord cut across, scattered in the fluid within ``size`` mm."""
    for _ in range(int(rng.integers(2, 6))):
        spot = pen.pose.place(rng.uniform(-0.8, 0.8, size=(1, 2)) * size)[0]
        centre = (float(spot[0]), float(spot[1]))
        draw_limb_section(pen, rng, centre, rng.uniform(0.08, 0.28) * size)


def _draw_soft_tissue(pen: Pen, rng: np.random.Generator, path: Points, width: float) -> None:
    outline = ribbon(path, width, taper=0.65)
    pen.fill(outline, Tissue.MUSCLE)
    pen.line(closed(outline), 1.0, rng.uniform(-32.0, -22.0), floor=0.06)
    for shift in rng.uniform(-0.38, 0.38, size=5):
        pen.line(moved(path[4:-4], 0.0, shift * width), 0.7, rng.uniform(-38.0, -30.0))
