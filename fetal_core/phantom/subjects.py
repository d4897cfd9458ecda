"""Which anatomy a table row shows, how large it is, and how it is framed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fetal_core.phantom.anatomy_head import draw_brain
from fetal_core.phantom.anatomy_limb import (
    draw_femur,
    draw_limb,
    draw_loose_parts,
    draw_profile,
    draw_spine,
)
from fetal_core.phantom.anatomy_mother import draw_cervix, draw_vessel
from fetal_core.phantom.anatomy_trunk import draw_abdomen, draw_oblique_trunk, draw_thorax
from fetal_core.phantom.canvas import Pen
from fetal_core.phantom.machines import Patient, View
from fetal_core.phantom.tissue import Tissue

Draw = Callable[[Pen, np.random.Generator], None]


@dataclass(frozen=True)
class Subject:
    """What is shown.

    Attributes:
        draw: paints the anatomy in its own frame.
        radii_mm: its half extents along and across.
        fill: its length as a share of the screen's width, lowest and highest.
        view: the kind of probe.
        turn: standard deviation of its rotation in radians, about either direction.
        ground: tissue of everything not painted.
    """

    draw: Draw
    radii_mm: tuple[float, float]
    fill: tuple[float, float]
    view: View = "abdominal"
    turn: float = 0.3
    ground: Tissue = Tissue.UTERUS


def choose_subject(
    plane: str, brain_plane: str, patient: Patient, rng: np.random.Generator
) -> Subject:
    """Return the subject of a row; unknown planes are drawn as 'Other'."""
    if plane == "Fetal brain":
        b = 0.5 * patient.at_age(42.0, 94.0)
        a = b / patient.cephalic_index
        return Subject(
            lambda pen, g: draw_brain(pen, g, a, b, brain_plane), (a, b), (0.5, 0.86), turn=0.22
        )
    if plane in ("Fetal abdomen", "Fetal thorax"):
        narrow = 1.0 if plane == "Fetal abdomen" else 0.88
        a = 0.5 * narrow * patient.at_age(44.0, 106.0)
        b = a * float(rng.uniform(0.86, 1.0))
        draw, turn = (draw_abdomen, 0.5) if plane == "Fetal abdomen" else (draw_thorax, 0.9)
        return Subject(lambda pen, g: draw(pen, g, a, b), (a, b), (0.48, 0.78), turn=turn)
    if plane == "Fetal femur":
        length = patient.at_age(27.0, 73.0)
        return Subject(
            lambda pen, g: draw_femur(pen, g, length),
            (0.8 * length, 0.4 * length),
            (0.6, 1.1),
            turn=0.22,
        )
    if plane == "Maternal cervix":
        size = float(rng.uniform(55.0, 80.0))
        return Subject(
            lambda pen, g: draw_cervix(pen, g, size),
            (size, size),
            (0.75, 1.0),
            "cervix",
            0.1,
            Tissue.CERVIX,
        )
    return _choose_other(patient, rng)


def _choose_other(patient: Patient, rng: np.random.Generator) -> Subject:
    head = 0.5 * patient.at_age(44.0, 96.0)
    trunk = patient.at_age(70.0, 150.0)
    kind = ("spine", "profile", "limb", "trunk", "fluid", "vessel")[
        int(rng.choice(6, p=(0.2, 0.2, 0.2, 0.2, 0.1, 0.1)))
    ]
    if kind == "spine":
        radii = (0.55 * trunk, 0.3 * trunk)
        return Subject(lambda pen, g: draw_spine(pen, g, trunk), radii, (0.6, 1.0), turn=0.25)
    if kind == "profile":
        size = 1.2 * head
        radii = (size, 1.1 * head)
        return Subject(lambda pen, g: draw_profile(pen, g, size), radii, (0.4, 0.75), turn=0.5)
    if kind == "limb":
        length = patient.at_age(24.0, 62.0)
        radii = (0.8 * length, 0.35 * length)
        return Subject(lambda pen, g: draw_limb(pen, g, length), radii, (0.5, 0.95), turn=0.4)
    if kind == "trunk":
        a, b = 0.6 * trunk, 0.33 * trunk
        return Subject(lambda pen, g: draw_oblique_trunk(pen, g, a, b), (a, b), (0.5, 1.0))
    if kind == "vessel":
        draw, turn = (lambda pen, g: draw_vessel(pen, g, 32.0)), 0.04
        return Subject(draw, (16.0, 16.0), (0.65, 0.65), "vessel", turn, Tissue.MUSCLE)
    return Subject(lambda pen, g: draw_loose_parts(pen, g, head), (head, head), (0.4, 0.9))
