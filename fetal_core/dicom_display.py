"""Stored values of DICOM pixels as grey values to be shown.

They are shown through the file's first window or VOI LUT where there is one (PS3.3 C.11.2); else 8
bits are kept as stored, and more are stretched from the frame's least to greatest value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from pydicom import FileDataset

Grey = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]


def luma(values_HWC: Values, bits: int) -> Grey:
    """ITU-R BT.601 luma of RGB values of ``bits`` significant bits."""
    if bits != 8:
        values_HWC = _scaled(values_HWC, 0, 2**bits - 1)
    return np.array(Image.fromarray(values_HWC.astype(np.uint8)).convert("L"))


def displayed(values_HW: Values, dataset: FileDataset) -> Grey:
    """Stored grey values (H, W) as they are to be shown; MONOCHROME1 is not inverted yet."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    rescaled = _is_rescaled(dataset)
    bits = int(dataset.BitsStored)
    signed = bool(dataset.get("PixelRepresentation", 0))
    physical_HW = apply_modality_lut(values_HW, dataset) if rescaled else values_HW
    if dataset.get("VOILUTSequence"):
        out_bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return _scaled(apply_voi(physical_HW, dataset), 0, 2**out_bits - 1)
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if center is not None and width is not None and width >= 1:
        function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
        return _windowed(physical_HW.astype(np.float64), center, width, function)
    if bits > 8 or rescaled:
        return _scaled(physical_HW, float(physical_HW.min()), float(physical_HW.max()))
    least = -(2 ** (bits - 1)) if signed else 0
    if bits == 8 and not signed:
        return values_HW.astype(np.uint8)
    return _scaled(values_HW, least, least + 2**bits - 1)


def _is_rescaled(dataset: FileDataset) -> bool:
    """Whether stored values stand for others; many devices write that 1 x value + 0 is shown."""
    if dataset.get("ModalityLUTSequence"):
        return True
    if "RescaleSlope" not in dataset or "RescaleIntercept" not in dataset:
        return False
    return float(dataset.RescaleSlope) != 1 or float(dataset.RescaleIntercept) != 0


def _windowed(values_HW: Values, center: float, width: float, function: str) -> Grey:
    """DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3 onto 0 to 255."""
    if function == "SIGMOID":
        share_HW = 1 / (1 + np.exp(np.clip(-4 * (values_HW - center) / width, -700, 700)))
    elif function == "LINEAR_EXACT":
        share_HW = (values_HW - center) / width + 0.5
    elif width == 1:
        share_HW = (values_HW > center - 0.5).astype(np.float64)
    else:
        share_HW = (values_HW - (center - 0.5)) / (width - 1) + 0.5
    return _scaled(share_HW, 0, 1)


def _scaled(values: Values, least: float, greatest: float) -> Grey:
    """``least`` to ``greatest`` onto 0 to 255; a flat image becomes black."""
    span = max(greatest - least, np.finfo(np.float64).tiny)
    scaled = (values.astype(np.float64) - least) * (255 / span)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _first(dataset: FileDataset, name: str) -> float | None:
    value = dataset.get(name)
    if value is None or value == "":
        return None
    number = float(value[0] if hasattr(value, "__len__") else value)
    return number if np.isfinite(number) else None
