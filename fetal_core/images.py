"""Image files as grey uint8 arrays: PNG, JPEG, TIFF and BMP here, DICOM in its own module.

The bytes are not trusted: sizes are checked before pixels are decoded, and whatever a decoder
raises becomes an :class:`~fetal_core.errors.ImageError`.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from fetal_core import dicom
from fetal_core.errors import ImageError
from fetal_core.file_structure import (
    MAX_BLOCKS,
    check_directories,
    check_run_lengths,
    check_scans,
    too_complex,
)
from fetal_core.image_limits import (
    ImageInfo,
    ImageLimits,
    check_bytes,
    check_frames,
    check_size,
    no_such_frame,
    truncated,
)
from fetal_core.silence import silenced

__all__ = ["SUFFIXES", "ImageInfo", "ImageLimits", "decode", "decode_frames", "probe"]

Grey = npt.NDArray[np.uint8]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"})
"""File name endings, in lower case, that are taken for images."""

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"BM", "BMP"),
)
_ORIENTATION_TAG = 0x0112
_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}


def probe(data: bytes, limits: ImageLimits | None = None) -> ImageInfo:
    """Read the header and check it against ``limits``; no pixel is decoded.

    Raises:
        ImageError: of kind ``empty-image``, ``not-an-image``, ``truncated-image``,
            ``unreadable-image``, ``too-small``, ``too-large`` or ``unsupported-dicom``.
    """
    limits = limits or ImageLimits()
    check_bytes(len(data), limits)
    if dicom.is_dicom(data):
        with silenced():
            return dicom.probe(data, limits)
    with _errors_as_image_errors(data), _open(data, limits) as image:
        return ImageInfo(str(image.format), *image.size, image.mode, _count_frames(image, limits))


def decode(data: bytes, limits: ImageLimits | None = None, frame: int = 0) -> Grey:
    """One frame as a grey image.

    Colour becomes ITU-R BT.601 luma, transparency lies over black, 16 bits are scaled to 8 over
    their full range, EXIF orientation is applied; for DICOM see :mod:`fetal_core.dicom`.

    Returns:
        uint8 ``(height, width)``, 0 to 255, contiguous and writable.

    Raises:
        ImageError: as for :func:`probe`.
    """
    limits = limits or ImageLimits()
    check_bytes(len(data), limits)
    if dicom.is_dicom(data):
        with silenced():
            return dicom.decode(data, limits, frame)
    with _errors_as_image_errors(data), _open(data, limits) as image:
        frames = _count_frames(image, limits)
        if not 0 <= frame < frames:
            raise no_such_frame(frame, frames)
        return _grey(image, frame, limits)


def decode_frames(data: bytes, limits: ImageLimits | None = None) -> Iterator[Grey]:
    """Each frame in turn, as :func:`decode` gives it; one frame is held at a time.

    Raises:
        ImageError: as for :func:`probe`, when the frame concerned is reached.
    """
    limits = limits or ImageLimits()
    check_bytes(len(data), limits)
    if dicom.is_dicom(data):
        yield from _each_silenced(dicom.decode_frames(data, limits))
        return
    with _errors_as_image_errors(data), _open(data, limits) as image:
        for frame in range(_count_frames(image, limits)):
            yield _grey(image, frame, limits)


def _each_silenced(frames: Iterator[Grey]) -> Iterator[Grey]:
    while True:
        with silenced():
            grey = next(frames, None)
        if grey is None:
            return
        yield grey


@contextmanager
def _open(data: bytes, limits: ImageLimits) -> Iterator[ImageFile.ImageFile]:
    """Open by the file's first bytes; the plug-in's class is used as it has no global limits."""
    kind = next((name for magic, name in _MAGIC if data.startswith(magic)), None)
    if kind is None:
        raise ImageError(
            "not-an-image",
            "the content is not a PNG, JPEG, TIFF, BMP or DICOM image, whatever its name says",
            "Replace it by the image, or remove it",
        )
    match kind:
        case "PNG":
            _check_png(data, limits)
        case "JPEG":
            check_scans(data)
        case "TIFF":
            check_directories(data, limits)
    with silenced():
        image = _PLUGINS[kind](io.BytesIO(data))
    with image:
        check_size(*image.size, limits)
        if any(tile[0] == "bmp_rle" for tile in image.tile):
            check_run_lengths(len(data))
        yield image


def _check_png(data: bytes, limits: ImageLimits) -> None:
    """Check the size, that all chunks are there, and the checksums that Pillow passes over."""
    if len(data) < 33:
        raise truncated()
    width_px, height_px = struct.unpack_from(">II", data, 16)
    check_size(width_px, height_px, limits)
    view, start = memoryview(data), 8
    for _ in range(MAX_BLOCKS):
        if start + 12 > len(data):
            raise truncated()
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise truncated()
        critical = not name[0] & 0x20
        if critical and zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(
            view[end - 4 : end], "big"
        ):
            raise _unreadable(f"the checksum of its {name!r} block at byte {start} is wrong")
        if name == b"IEND":
            return
        start = end
    raise too_complex(f"the PNG image comes in more than {MAX_BLOCKS:,} blocks")


def _count_frames(image: ImageFile.ImageFile, limits: ImageLimits) -> int:
    """Frames of a TIFF, counted up to the limit; the other formats are read as one frame."""
    if image.format != "TIFF":
        return 1
    frames = 1
    with silenced():
        while frames <= limits.max_frames:
            try:
                image.seek(frames)
            except EOFError:
                break
            frames += 1
        check_frames(frames, limits)
        image.seek(0)
    return frames


def _grey(image: ImageFile.ImageFile, frame: int, limits: ImageLimits) -> Grey:
    with silenced() if image.format == "TIFF" else nullcontext():
        if frame:
            image.seek(frame)
            check_size(*image.size, limits)
        image.load()
    with silenced():
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    return _upright(_luma(image), orientation)


def _luma(image: Image.Image) -> Grey:
    if image.mode == "L" and "transparency" not in image.info:
        return np.array(image)
    if image.mode.startswith("I;16"):
        values_HW = np.asarray(image).astype(np.uint32)
        return ((values_HW + 128) // 257).astype(np.uint8)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _over_black(image)
    if image.mode in {"1", "L", "P", "RGB", "RGBX", "YCbCr"}:
        return np.array(image.convert("L"))
    if image.mode == "CMYK":
        return np.array(image.convert("RGB").convert("L"))
    raise _unreadable(f"pixels of mode {image.mode} have no agreed grey range")


def _over_black(image: Image.Image) -> Grey:
    red, green, blue, alpha = image.convert("RGBA").split()
    luma_HW = np.asarray(Image.merge("RGB", (red, green, blue)).convert("L"), dtype=np.uint32)
    covered: Grey = ((luma_HW * np.asarray(alpha) + 127) // 255).astype(np.uint8)
    return covered


def _upright(grey: Grey, orientation: object) -> Grey:
    """Undo an EXIF orientation (CIPA DC-008, tag 0x0112)."""
    turned = {
        2: lambda: grey[:, ::-1],
        3: lambda: grey[::-1, ::-1],
        4: lambda: grey[::-1],
        5: lambda: grey.T,
        6: lambda: np.rot90(grey, -1),
        7: lambda: grey[::-1, ::-1].T,
        8: lambda: np.rot90(grey),
    }
    if not isinstance(orientation, int) or orientation not in turned:
        return grey
    return np.ascontiguousarray(turned[orientation]())


def _unreadable(reason: str) -> ImageError:
    return ImageError("unreadable-image", reason, "Store it again as 8-bit PNG, or exclude it")


@contextmanager
def _errors_as_image_errors(data: bytes) -> Iterator[None]:
    """Decoders meet hostile bytes with nearly any exception; all of them mean the same here."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        cut_jpeg = data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-1024:]
        if cut_jpeg or isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise truncated() from None
        reason = str(error).strip().splitlines()
        raise _unreadable(
            f"it cannot be decoded ({reason[0] if reason else 'no reason given'})"
        ) from None
