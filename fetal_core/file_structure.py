"""Structure of image files, checked before a decoder follows it.

Some small files keep a decoder busy for hours, or make it ask for gigabytes, although the image
that they claim is small: by scans without end, thousands of directories, or tiles larger than the
image.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fetal_core.errors import ImageError
from fetal_core.image_limits import ImageLimits

MAX_BLOCKS = 20_000
"""Of a PNG file."""

_MAX_SCANS = 64  # encoders use 10 or so
_MAX_ENTRIES = 500
_MAX_RLE_BYTES = 2 * 1024 * 1024
_JPEG_SCAN = b"\xff\xda"
_TILE_SIDES = (322, 323)
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}


def check_scans(stream: bytes) -> None:
    """Raise ImageError ``too-large`` if a JPEG image comes in too many scans."""
    if stream.count(_JPEG_SCAN) > _MAX_SCANS:
        raise too_complex(f"the JPEG image comes in more than {_MAX_SCANS} scans")


def check_run_lengths(size_bytes: int) -> None:
    """Raise ImageError ``too-large`` for a run-length coded BMP file that is slow to decode."""
    if size_bytes > _MAX_RLE_BYTES:
        raise too_complex(f"a run-length coded BMP file has more than {_MAX_RLE_BYTES:,} bytes")


def check_directories(data: bytes, limits: ImageLimits) -> None:
    """Check the size of the directories and tiles of a TIFF or BigTIFF file.

    Raises:
        ImageError: ``too-large``.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\x00", b"\x00+")
    offset, size = (f"{order}Q", 20) if big else (f"{order}I", 12)
    number = struct.Struct(f"{order}Q" if big else f"{order}H")
    seen: set[int] = set()
    try:
        (start,) = struct.unpack_from(offset, data, 8 if big else 4)
        while start and start not in seen and len(seen) <= limits.max_frames:
            seen.add(start)
            first, (count,) = start + number.size, number.unpack_from(data, start)
            if min(count, (len(data) - first) // size) > _MAX_ENTRIES:
                raise too_complex(f"a TIFF directory has more than {_MAX_ENTRIES} entries")
            end = first + count * size
            _check_tiles(dict(_tile_sides(data[first:end], order, size)), limits)
            (start,) = struct.unpack_from(offset, data, end)
    except struct.error:
        return  # the file ends here, for decoders too


def _tile_sides(entries: bytes, order: str, size: int) -> Iterator[tuple[int, int]]:
    for at in range(0, len(entries) - size + 1, size):
        tag, kind = struct.unpack_from(f"{order}HH", entries, at)
        if tag in _TILE_SIDES and kind in _INTEGERS:
            value = struct.unpack_from(order + _INTEGERS[kind], entries, at + size * 2 // 3)
            yield tag, value[0]


def _check_tiles(sides_px: dict[int, int], limits: ImageLimits) -> None:
    width_px, length_px = (sides_px.get(side, 0) for side in _TILE_SIDES)
    if width_px * length_px > limits.max_pixels:
        raise ImageError(
            "too-large",
            f"its tiles claim {width_px} x {length_px} pixels, more than the limit of "
            f"{limits.max_pixels:,}",
            "Store it in smaller tiles",
        )


def too_complex(reason: str) -> ImageError:
    """The error for a file whose parts are too many to be read in a bounded time."""
    return ImageError("too-large", reason, "Store it again as 8-bit PNG")
