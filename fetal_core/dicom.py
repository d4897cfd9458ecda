"""DICOM images as grey uint8 arrays, by pydicom and the pylibjpeg plug-ins.

Grey values are shown through the file's first window or VOI LUT where there is one (PS3.3 C.11.2);
else 8 bits are kept as stored, and more are stretched from the frame's least to greatest value.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fetal_core.errors import ImageError
from fetal_core.image_limits import (
    ImageInfo,
    ImageLimits,
    check_frames,
    check_size,
    no_such_frame,
    truncated,
)

if TYPE_CHECKING:
    from pydicom import FileDataset

Grey = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]

DICOM_HEAD_BYTES = 132

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_J2K_START = b"\xff\x4f\xff\x51"
_JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def is_dicom(data: bytes) -> bool:
    """Whether the first ``DICOM_HEAD_BYTES`` are preamble and mark of a DICOM file (PS3.10)."""
    return data[128:DICOM_HEAD_BYTES] == b"DICM"


def probe(data: bytes, limits: ImageLimits) -> ImageInfo:
    """Size, photometric interpretation and number of frames; no pixel is decoded.

    Raises:
        ImageError: ``unsupported-dicom``, ``truncated-image``, ``unreadable-image``, ``too-small``
            or ``too-large``.
    """
    with _errors_as_image_errors():
        return _info(_read(data, limits), limits)


def decode(data: bytes, limits: ImageLimits, frame: int = 0) -> Grey:
    """One frame as uint8 ``(height, width)``, 0 to 255, brighter is greater.

    Raises:
        ImageError: as for :func:`probe`.
    """
    with _errors_as_image_errors():
        dataset = _read(data, limits)
        info = _info(dataset, limits)
        if not 0 <= frame < info.frames:
            raise no_such_frame(frame, info.frames)
        return _decode_frame(dataset, info, frame)


def decode_frames(data: bytes, limits: ImageLimits) -> Iterator[Grey]:
    """Each frame in turn, as :func:`decode` gives it.

    Raises:
        ImageError: as for :func:`probe`, when the frame concerned is reached.
    """
    with _errors_as_image_errors():
        dataset = _read(data, limits)
        info = _info(dataset, limits)
        for frame in range(info.frames):
            yield _decode_frame(dataset, info, frame)


def _read(data: bytes, limits: ImageLimits) -> FileDataset:
    import pydicom

    _check_deflated(data, limits)
    return pydicom.dcmread(io.BytesIO(data))


def _check_deflated(data: bytes, limits: ImageLimits) -> None:
    """Refuse a deflated file that inflates beyond the limit: pydicom inflates it all at once."""
    if _DEFLATED not in data[132:1024] or data[132:136] != b"\x02\x00\x00\x00":
        return
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(data[start:], limits.max_bytes)
    if inflater.unconsumed_tail:
        raise ImageError(
            "too-large",
            f"the deflated file holds more than {limits.max_bytes:,} bytes",
            "Store it smaller, or raise max_bytes",
        )


def _info(dataset: FileDataset, limits: ImageLimits) -> ImageInfo:
    needed = ("Rows", "Columns", "PixelData", "PhotometricInterpretation", "BitsStored")
    missing = [name for name in needed if dataset.get(name) is None]
    if missing:
        raise _unsupported(f"it has no {', '.join(missing)}, so it is not an image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    width_px, height_px = int(dataset.Columns), int(dataset.Rows)
    check_size(width_px, height_px, limits)
    check_frames(frames, limits)
    mode = str(dataset.PhotometricInterpretation)
    return ImageInfo("DICOM", width_px, height_px, mode, max(frames, 1))


def _decode_frame(dataset: FileDataset, info: ImageInfo, frame: int) -> Grey:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import apply_color_lut

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _check_codestream(dataset, info, frame)
    decoder = get_decoder(syntax)
    values, meta = decoder.as_array(dataset, index=frame)
    if info.mode == "PALETTE COLOR":
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        return _luma(apply_color_lut(values, dataset), bits)
    if values.ndim == 3:
        return _luma(values, int(meta["bits_stored"]))
    grey = _display(values, dataset)
    return np.invert(grey) if info.mode == "MONOCHROME1" else grey


def _check_codestream(dataset: FileDataset, info: ImageInfo, frame: int) -> None:
    """Refuse a compressed frame whose own header has another size than the DICOM header."""
    from pydicom.encaps import get_frame

    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    stream = get_frame(
        dataset.PixelData, frame, number_of_frames=info.frames, extended_offsets=offsets
    )
    size_px = _codestream_size(stream)
    if size_px is not None and size_px != (info.width_px, info.height_px):
        raise ImageError(
            "unreadable-image",
            f"frame {frame} is compressed as {size_px[0]} x {size_px[1]} pixels, but the header "
            f"says {info.width_px} x {info.height_px}",
            "Export it again",
        )


def _codestream_size(stream: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG, JPEG-LS or JPEG 2000 stream; None for other codings."""
    start = stream.find(_J2K_START)
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", stream, start + 8)
        return right - left, bottom - top
    if not stream.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(stream):
        fill, marker, length = struct.unpack_from(">BBH", stream, position)
        if fill != 0xFF:
            return None
        if marker in _JPEG_FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", stream, position + 5)
            return width, height
        position += 1 if marker == 0xFF else 2 + length
    return None


def _luma(values_HWC: Values, bits: int) -> Grey:
    """ITU-R BT.601 luma of RGB values of ``bits`` significant bits."""
    if bits != 8:
        values_HWC = _scaled(values_HWC, 0, 2**bits - 1)
    return np.array(Image.fromarray(values_HWC.astype(np.uint8)).convert("L"))


def _display(values_HW: Values, dataset: FileDataset) -> Grey:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    bits = int(dataset.BitsStored)
    signed = bool(dataset.get("PixelRepresentation", 0))
    physical_HW = apply_modality_lut(values_HW, dataset)
    if dataset.get("VOILUTSequence"):
        out_bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return _scaled(apply_voi(physical_HW, dataset), 0, 2**out_bits - 1)
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if center is not None and width is not None and width >= 1:
        function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
        return _windowed(physical_HW.astype(np.float64), center, width, function)
    if bits > 8 or physical_HW is not values_HW:
        return _scaled(physical_HW, float(physical_HW.min()), float(physical_HW.max()))
    least = -(2 ** (bits - 1)) if signed else 0
    if bits == 8 and not signed:
        return values_HW.astype(np.uint8)
    return _scaled(values_HW, least, least + 2**bits - 1)


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


def _unsupported(reason: str) -> ImageError:
    return ImageError(
        "unsupported-dicom", reason, "Export it as an ultrasound image, or as PNG, or exclude it"
    )


@contextmanager
def _errors_as_image_errors() -> Iterator[None]:
    """Map whatever pydicom and its plug-ins raise on hostile or unusual files."""
    try:
        yield
    except ImageError:
        raise
    except (NotImplementedError, ImportError) as error:
        raise _unsupported(f"its coding is not supported ({error})") from None
    except BaseException as error:
        # A panic of the Rust RLE decoder is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())
        signs = ("truncated", "less than expected", "end of file", "unexpected end")
        if isinstance(error, EOFError) or any(sign in text.lower() for sign in signs):
            raise truncated() from None
        raise ImageError(
            "unreadable-image",
            f"the DICOM file cannot be decoded ({text[:200] or type(error).__name__})",
            "Export it again, or exclude it",
        ) from None
