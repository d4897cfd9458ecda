"""DICOM images as grey uint8 arrays, by pydicom and the pylibjpeg plug-ins."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fetal_core.dicom_display import displayed, luma
from fetal_core.errors import ImageError
from fetal_core.file_structure import check_scans, too_complex
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

DICOM_HEAD_BYTES = 132

_MAX_READS = 100_000  # two or three an element
_MAX_FRAGMENTS = 100_000
_MAX_SAMPLES = 4
_MAX_BITS = 32
_MAX_VALUE_BYTES = 256 * 1024  # two tables of grey values
_IMAGE_GROUP = 0x28
_SHORT_GROUPS = {b"\x02\x00", b"\x00\x02", b"\x08\x00", b"\x00\x08", b"\x28\x00", b"\x00\x28"}
_ELEMENT_HEAD_BYTES = 8
_ITEM = b"\xfe\xff\x00\xe0"
_PLAIN_HEAD = bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00"
_J2K_START = b"\xff\x4f\xff\x51"
_JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC}
_JPEG_START = b"\xff\xd8"
_SCAN = 0xDA


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


class _DeflatedError(Exception):
    """The rest of the file is deflated; it is the only argument."""


class _Elements(io.BytesIO):
    """A file that ends the reading of too many elements, which come one by one.

    The groups that are parsed must have short values, as they may take fifty times the memory.
    A dataset that is deflated is read as a whole, by the one call without a size.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _MAX_READS
        self._group = b""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            raise _DeflatedError(super().read())
        self._left -= 1
        if self._left < 0:
            raise too_complex("the DICOM file has too many elements")
        if size > _MAX_VALUE_BYTES and self._group in _SHORT_GROUPS:
            raise too_complex(f"a DICOM element has more than {_MAX_VALUE_BYTES:,} bytes")
        data = super().read(size)
        if size == _ELEMENT_HEAD_BYTES:
            self._group = data[:2]
        return data


def _read(data: bytes, limits: ImageLimits) -> FileDataset:
    import pydicom

    try:
        return pydicom.dcmread(_Elements(data))
    except _DeflatedError as deflated:
        return pydicom.dcmread(_Elements(_PLAIN_HEAD + _inflated(deflated.args[0], limits)))


def _inflated(data: bytes, limits: ImageLimits) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    dataset = inflater.decompress(data, limits.max_bytes)
    if inflater.unconsumed_tail:
        raise ImageError(
            "too-large",
            f"the deflated file holds more than {limits.max_bytes:,} bytes",
            "Store it smaller, or raise max_bytes",
        )
    if not inflater.eof:
        raise truncated()
    return dataset


def _info(dataset: FileDataset, limits: ImageLimits) -> ImageInfo:
    needed = ("Rows", "Columns", "PixelData", "PhotometricInterpretation", "BitsStored")
    missing = [name for name in needed if dataset.get(name) is None]
    if missing:
        raise _unsupported(f"it has no {', '.join(missing)}, so it is not an image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    width_px, height_px = int(dataset.Columns), int(dataset.Rows)
    check_size(width_px, height_px, limits)
    check_frames(frames, limits)
    _check_values(dataset)
    mode = str(dataset.PhotometricInterpretation)
    return ImageInfo("DICOM", width_px, height_px, mode, max(frames, 1))


def _check_values(dataset: FileDataset) -> None:
    """Refuse what takes far more memory once it is parsed or decoded than as it is stored."""
    samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 8)
    if samples > _MAX_SAMPLES or bits > _MAX_BITS:
        raise _unsupported(f"its pixels have {samples} samples of {bits} bits")
    for tag in dataset.keys():  # noqa: SIM118, as values() would parse them
        value = dataset.get_item(tag).value
        if tag.group == _IMAGE_GROUP and isinstance(value, bytes) and len(value) > _MAX_VALUE_BYTES:
            raise too_complex(f"element {tag} has more than {_MAX_VALUE_BYTES:,} bytes")
    if dataset.PixelData.count(_ITEM) > _MAX_FRAGMENTS:
        raise too_complex(f"its pixels come in more than {_MAX_FRAGMENTS:,} parts")


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
        return luma(apply_color_lut(values, dataset), bits)
    if values.ndim == 3:
        return luma(values, int(meta["bits_stored"]))
    grey = displayed(values, dataset)
    return np.invert(grey) if info.mode == "MONOCHROME1" else grey


def _check_codestream(dataset: FileDataset, info: ImageInfo, frame: int) -> None:
    """Refuse a compressed frame whose own header has another size than the DICOM header."""
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000TransferSyntaxes, RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    stream = get_frame(
        dataset.PixelData, frame, number_of_frames=info.frames, extended_offsets=offsets
    )
    if syntax == RLELossless:
        return
    find = _j2k_sizes if syntax in JPEG2000TransferSyntaxes else _jpeg_sizes
    for width_px, height_px, samples in find(stream):
        if (width_px, height_px) != (info.width_px, info.height_px) or samples > _MAX_SAMPLES:
            raise ImageError(
                "unreadable-image",
                f"frame {frame} is compressed as {width_px} x {height_px} pixels of {samples} "
                f"samples, but the header says {info.width_px} x {info.height_px}",
                "Export it again",
            )


def _j2k_sizes(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Width, height and samples of all JPEG 2000 streams that a decoder might take for the one."""
    start = stream.find(_J2K_START)
    if start < 0:
        raise truncated()
    while start >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", stream, start + 8)
        yield right - left, bottom - top, struct.unpack_from(">H", stream, start + 40)[0]
        start = stream.find(_J2K_START, start + 1) if start else -1


def _jpeg_sizes(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Width, height and samples by each frame header of a JPEG or JPEG-LS stream."""
    check_scans(stream)
    position, found = 2, False
    while stream.startswith(_JPEG_START) and position + 10 <= len(stream):
        fill, marker, length = struct.unpack_from(">BBH", stream, position)
        if fill != 0xFF or marker == _SCAN:
            break
        if marker in _JPEG_FRAME_MARKERS:
            found = True
            height_px, width_px, samples = struct.unpack_from(">HHB", stream, position + 5)
            yield width_px, height_px, samples
        position += 1 if marker == 0xFF else 2 + length
    if not found:
        raise _unsupported("its coding is not JPEG, or has no size before its first scan")


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
