"""What an image may look like before any of its pixels is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt

from fetal_core.config import Config
from fetal_core.errors import ImageError


class ImageLimits(Config):
    """Bounds that keep decompression bombs and useless images out."""

    max_bytes: PositiveInt = 64 * 1024 * 1024
    max_pixels: PositiveInt = 50_000_000
    min_side_px: PositiveInt = 16
    max_frames: PositiveInt = 2000


@dataclass(frozen=True)
class ImageInfo:
    """An image's header.

    Attributes:
        format: ``PNG``, ``JPEG``, ``TIFF``, ``BMP`` or ``DICOM``.
        width_px: columns of the first frame, as stored.
        height_px: rows of the first frame, as stored.
        mode: Pillow's mode, or DICOM's photometric interpretation.
        frames: number of frames, 1 or more.
    """

    format: str
    width_px: int
    height_px: int
    mode: str
    frames: int


def check_bytes(size_bytes: int, limits: ImageLimits) -> None:
    """Raise ImageError ``empty-image`` or ``too-large`` by the length of the file."""
    if size_bytes == 0:
        raise ImageError("empty-image", "the file has no bytes", "Copy it again from its source")
    if size_bytes > limits.max_bytes:
        raise ImageError(
            "too-large",
            f"the file has {size_bytes:,} bytes, more than the limit of {limits.max_bytes:,}",
            "Store it smaller, or raise max_bytes",
        )


def check_size(width_px: int, height_px: int, limits: ImageLimits) -> None:
    """Raise ImageError ``too-small`` or ``too-large`` by the size that the header states."""
    size = f"{width_px} x {height_px} pixels"
    if min(width_px, height_px) < limits.min_side_px:
        raise ImageError(
            "too-small",
            f"the image has {size}; each side needs {limits.min_side_px} or more",
            "Replace or exclude it",
        )
    if width_px * height_px > limits.max_pixels:
        raise ImageError(
            "too-large",
            f"the image claims {size}, more than the limit of {limits.max_pixels:,} in all",
            "Store it smaller, or raise max_pixels if it is genuine",
        )


def check_frames(frames: int, limits: ImageLimits) -> None:
    """Raise ImageError ``too-large`` if there are more frames than the limit."""
    if frames > limits.max_frames:
        raise ImageError(
            "too-large",
            f"the file has more than {limits.max_frames} frames",
            "Cut the sequence, or raise max_frames",
        )


def no_such_frame(frame: int, frames: int) -> ImageError:
    """The error for a frame number outside of ``0 .. frames - 1``."""
    return ImageError(
        "unreadable-image",
        f"frame {frame} was asked for and the file has {frames}",
        "Make the manifest again with `fetal prepare`",
    )


def truncated() -> ImageError:
    """The error for a file that ends before its pixels do."""
    return ImageError(
        "truncated-image",
        "the file ends before the image does",
        "Copy it again from its source, or exclude it",
    )
