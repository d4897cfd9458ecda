"""Acoustic properties of the tissues that the phantom is painted with."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Tissue(IntEnum):
    """Label of a tissue in the painted map."""

    FLUID = 0
    BLOOD = 1
    BRAIN = 2
    THALAMUS = 3
    ECHOGENIC = 4
    SOLID = 5
    LUNG = 6
    MUSCLE = 7
    FAT = 8
    PLACENTA = 9
    UTERUS = 10
    BONE = 11
    CARTILAGE = 12
    MYOCARDIUM = 13
    CERVIX = 14
    SKULL = 15


# backscatter in dB below full scale, two-way attenuation in dB/mm, depth of the texture in dB
_PROPERTIES: dict[Tissue, tuple[float, float, float]] = {
    Tissue.FLUID: (-95.0, 0.00, 0.0),
    Tissue.BLOOD: (-70.0, 0.04, 0.5),
    Tissue.BRAIN: (-47.0, 0.14, 2.6),
    Tissue.THALAMUS: (-51.0, 0.14, 1.0),
    Tissue.ECHOGENIC: (-31.0, 0.20, 2.0),
    Tissue.SOLID: (-38.0, 0.20, 2.0),
    Tissue.LUNG: (-37.0, 0.20, 2.0),
    Tissue.MUSCLE: (-43.0, 0.20, 2.2),
    Tissue.FAT: (-35.0, 0.24, 3.2),
    Tissue.PLACENTA: (-37.0, 0.18, 1.6),
    Tissue.UTERUS: (-39.0, 0.20, 3.4),
    Tissue.BONE: (-30.0, 8.00, 1.5),
    Tissue.CARTILAGE: (-50.0, 0.22, 1.0),
    Tissue.MYOCARDIUM: (-37.0, 0.20, 1.2),
    Tissue.CERVIX: (-36.0, 0.17, 4.4),
    Tissue.SKULL: (-26.0, 2.20, 1.5),
}


def _column(index: int) -> npt.NDArray[np.float32]:
    return np.array([_PROPERTIES[tissue][index] for tissue in Tissue], dtype=np.float32)


BACKSCATTER_DB = _column(0)
ATTENUATION_DB_PER_MM = _column(1)
TEXTURE_DB = _column(2)
