"""Patients and scanners: what stays the same over the images of one patient or one machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fetal_core.phantom.scan import Geometry
from fetal_core.phantom.seeds import stream

View = Literal["abdominal", "cervix", "vessel"]


@dataclass(frozen=True)
class Patient:
    """Traits of one pregnancy.

    Attributes:
        ga_weeks: gestational age, 18 to 38.
        size: multiplier of the mean size at that age.
        cephalic_index: width over length of the head.
        wall_mm: thickness of the mother's abdominal wall.
        placenta: side of the uterus where it lies.
        fluid: amount of amniotic fluid, 0 to 1.
        clarity_db: gain that the mother's body leaves.
    """

    ga_weeks: float
    size: float
    cephalic_index: float
    wall_mm: float
    placenta: Literal["anterior", "posterior", "lateral"]
    fluid: float
    clarity_db: float

    def at_age(self, at_18_mm: float, at_38_mm: float) -> float:
        """Return a length in mm that grows linearly from week 18 to week 38."""
        fraction = (self.ga_weeks - 18.0) / 20.0
        return self.size * (at_18_mm + fraction * (at_38_mm - at_18_mm))


def patient_traits(seed: int, patient: int) -> Patient:
    """Return the traits of a patient number, equal wherever it is asked for."""
    rng = stream(seed, "patient", patient)
    sides: tuple[Literal["anterior", "posterior", "lateral"], ...]
    sides = ("anterior", "posterior", "lateral")
    return Patient(
        ga_weeks=18.0 + 20.0 * float(rng.beta(1.6, 2.2)),
        size=float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12)),
        cephalic_index=float(np.clip(rng.normal(0.79, 0.035), 0.70, 0.88)),
        wall_mm=float(rng.uniform(9.0, 24.0)),
        placenta=sides[int(rng.integers(3))],
        fluid=float(rng.beta(2.0, 2.0)),
        clarity_db=float(rng.normal(0.0, 1.6)),
    )


@dataclass(frozen=True)
class Machine:
    """Traits of one scanner.

    Attributes:
        dynamic_range_db, gamma: of the log compression.
        pulse_mm, beam: axial and lateral spread; the beam in radians of the sector.
        smoothing: speckle reduction, standard deviations along depth and beams in samples.
        tgc_error: relative error of the time-gain compensation.
    """

    dynamic_range_db: float
    gamma: float
    pulse_mm: float
    beam: float
    smoothing: tuple[float, float]
    tgc_error: float


_TRAITS: dict[str, Machine] = {
    "Voluson E6": Machine(56.0, 1.20, 0.26, 0.0050, (1.0, 1.1), 0.02),
    "Voluson S10": Machine(58.0, 1.15, 0.24, 0.0045, (1.2, 1.3), -0.02),
    "Aloka": Machine(57.0, 1.25, 0.32, 0.0065, (0.8, 0.9), -0.03),
}
_OTHER = Machine(60.0, 1.20, 0.30, 0.0060, (0.9, 1.1), 0.05)

# one screen for each field of view in turn
_SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "Voluson E6": ((959, 661), (959, 661), (959, 661), (961, 663), (959, 661)),
    "Voluson S10": ((1137, 787),),
    "Aloka": ((640, 392), (640, 392), (768, 519), (740, 448), (768, 519)),
}
_OTHER_SIZES = ((1137, 787), (768, 519))

# apex_y, r_near, r_far and half angle in degrees (vessel: half width)
_ABDOMINAL = (
    (-0.42, 0.42, 1.60, 35.0),
    (-0.30, 0.33, 1.29, 36.0),
    (-0.95, 0.80, 2.20, 32.0),
    (-0.55, 0.50, 1.70, 40.0),
    (-1.60, 1.62, 2.70, 16.0),
)
_CERVIX = (
    (-0.06, 0.22, 1.04, 70.0),
    (0.02, 0.12, 1.00, 62.0),
    (-0.12, 0.20, 1.20, 56.0),
)
_VESSEL = ((0.02, 0.0, 0.86, 0.47), (0.03, 0.0, 0.92, 0.54))
_PRESETS = {
    "abdominal": (_ABDOMINAL, (0.32, 0.20, 0.24, 0.16, 0.08)),
    "cervix": (_CERVIX, (0.4, 0.3, 0.3)),
    "vessel": (_VESSEL, (0.5, 0.5)),
}


def machine_traits(seed: int, machine: str) -> Machine:
    """Return the traits of a machine of this cohort: the model's, a little out of adjustment."""
    rng = stream(seed, "machine", machine)
    base = _TRAITS.get(machine, _OTHER)
    return Machine(
        dynamic_range_db=base.dynamic_range_db + float(rng.uniform(-2.0, 2.0)),
        gamma=base.gamma * float(rng.uniform(0.95, 1.05)),
        pulse_mm=base.pulse_mm * float(rng.uniform(0.9, 1.1)),
        beam=base.beam * float(rng.uniform(0.9, 1.1)),
        smoothing=base.smoothing,
        tgc_error=base.tgc_error + float(rng.uniform(-0.02, 0.02)),
    )


def choose_geometry(machine: str, view: View, rng: np.random.Generator) -> Geometry:
    """Return one of the few fields of view that a machine offers."""
    sizes = _SIZES.get(machine, _OTHER_SIZES)
    presets, odds = _PRESETS[view]
    index = int(rng.choice(len(presets), p=odds))
    width, height = sizes[index % len(sizes)]
    apex_y, near, far, half = presets[index]
    if view == "vessel":
        return Geometry(width, height, -0.15, apex_y, near, far, half, linear=True)
    beams = 360 if view == "cervix" else 240
    return Geometry(width, height, 0.0, apex_y, near, far, math.radians(half), n_beams=beams)
