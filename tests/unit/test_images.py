"""Decoding of PNG, JPEG, TIFF and BMP against Pillow, and refusal of everything else."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_samples import encode, texture
from fetal_core.errors import ImageError
from fetal_core.images import ImageLimits, decode, decode_frames, probe

GREY = texture(1)
COLOUR = np.stack([texture(1), texture(2), texture(3)], axis=-1)
# ITU-R BT.601-7, 2.5.1
LUMA = np.array([0.299, 0.587, 0.114])


def refusal(data: bytes, **limits: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            decode(data, ImageLimits(**limits))
    assert caught.value.reason
    assert caught.value.remedy
    return caught.value.kind


def png_header(width: int, height: int, tail: bytes = b"") -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + tail


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_grey_comes_back_unchanged(kind: str) -> None:
    grey = decode(encode(GREY, kind))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, GREY)
    assert grey.flags.writeable
    assert grey.flags.c_contiguous


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_colour_becomes_luma(kind: str) -> None:
    expected = COLOUR.astype(float) @ LUMA
    assert np.abs(decode(encode(COLOUR, kind)) - expected).max() <= 1


def test_jpeg_is_close_to_its_source() -> None:
    assert np.abs(decode(encode(GREY, "JPEG", quality=95)).astype(int) - GREY).mean() < 3


def test_transparency_lies_over_black() -> None:
    alpha = texture(4)
    data = encode(np.dstack([COLOUR, alpha]))
    expected = (COLOUR.astype(float) @ LUMA) * alpha / 255
    assert np.abs(decode(data) - expected).max() <= 1.5


def test_a_transparent_grey_value_becomes_black() -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG", transparency=int(GREY[0, 0]))
    expected = np.where(GREY[0, 0] == GREY, 0, GREY)
    np.testing.assert_array_equal(decode(buffer.getvalue()), expected)


@pytest.mark.parametrize("transparency", [None, bytes(range(256))])
def test_palette(transparency: bytes | None) -> None:
    image = Image.fromarray(GREY).convert("P")
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"transparency": transparency} if transparency else {}))
    expected = palette[np.asarray(image)].astype(float) @ LUMA
    if transparency:
        expected *= np.asarray(image) / 255
    assert np.abs(decode(buffer.getvalue()) - expected).max() <= 1.5


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_over_their_full_range(kind: str) -> None:
    values = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    np.testing.assert_array_equal(decode(encode(values, kind)), np.rint(values / 257))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(kind: str, orientation: int) -> None:
    upright = np.zeros((48, 32), np.uint8)
    upright[:16, :8] = 255
    # Stored image whose display under each tag value is `upright`, by CIPA DC-008 figure.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if kind != "TIFF" else {"tiffinfo": {0x0112: orientation}}
    shown = decode(encode(np.ascontiguousarray(stored), kind, **options))
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright).mean() < 4


def test_pages_of_a_tiff_are_frames() -> None:
    pages = [texture(seed) for seed in range(3)]
    buffer = io.BytesIO()
    first, *rest = map(Image.fromarray, pages)
    first.save(buffer, "TIFF", save_all=True, append_images=rest, compression="tiff_lzw")
    data = buffer.getvalue()
    assert probe(data).frames == 3
    np.testing.assert_array_equal(np.array(list(decode_frames(data))), pages)
    np.testing.assert_array_equal(decode(data, frame=2), pages[2])
    with pytest.raises(ImageError, match="frame 3 was asked for and the file has 3"):
        decode(data, frame=3)
    with pytest.raises(ImageError, match="more than 2 frames"):
        decode(data, ImageLimits(max_frames=2))


def test_probe_reads_the_header_only() -> None:
    info = probe(encode(COLOUR))
    assert (info.format, info.width_px, info.height_px, info.mode, info.frames) == (
        "PNG",
        56,
        40,
        "RGB",
        1,
    )


def test_bombs_are_refused_by_their_header() -> None:
    assert refusal(png_header(60_000, 60_000)) == "too-large"
    assert refusal(encode(GREY), max_pixels=1000) == "too-large"
    assert refusal(encode(GREY), max_bytes=100) == "too-large"


def test_useless_files_are_refused() -> None:
    assert refusal(b"") == "empty-image"
    assert refusal(b"just a note\n") == "not-an-image"
    assert refusal(b"GIF89a" + bytes(100)) == "not-an-image"
    assert refusal(encode(np.zeros((1, 1), np.uint8))) == "too-small"
    assert refusal(png_header(64, 64)) == "truncated-image"
    assert refusal(encode(np.zeros((32, 32), np.float32), "TIFF")) == "unreadable-image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_cut_file_is_refused(kind: str, share: float) -> None:
    data = encode(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8), kind)
    cut = data[: int(len(data) * share)]
    # A TIFF keeps its directory at its end: without it there is no telling what the file was.
    kinds = {"truncated-image"} if kind != "TIFF" else {"truncated-image", "unreadable-image"}
    assert refusal(cut) in kinds


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(encode(GREY))
    data[data.index(b"IDAT") + 40] ^= 1
    assert refusal(bytes(data)) == "unreadable-image"


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=12),
    length=st.integers(0, 5000),
)
def test_mangled_bytes_give_an_image_or_an_image_error(
    kind: str, edits: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(encode(COLOUR, kind))
    for place, value in edits:
        data[place % len(data)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            frames = list(
                decode_frames(bytes(data[: max(1, length)]), ImageLimits(max_pixels=10**6))
            )
        except ImageError:
            return
    assert all(frame.dtype == np.uint8 and frame.ndim == 2 for frame in frames)
