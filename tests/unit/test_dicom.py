"""DICOM decoding against pydicom's own pixel arrays, on the files that pydicom ships."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from data_samples import texture
from fetal_core.errors import ImageError
from fetal_core.images import ImageLimits, decode, decode_frames, probe
from fetal_core.quality import unusable_reason

LUMA = np.array([0.299, 0.587, 0.114])
ANY_SIZE = ImageLimits(min_side_px=1)

COLOUR_FILES = [
    "ExplVR_BigEnd.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_rle_32bit.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "examples_jpeg2k.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
]
WINDOWED_FILES = ["693_J2KI.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "examples_overlay.dcm"]
STRETCHED_FILES = ["CT_small.dcm", "JPEG2000.dcm", "JPGExtended.dcm", "rtdose_rle.dcm"]


def shipped(name: str) -> bytes:
    """A test file that is inside the package; nothing is downloaded."""
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path)).read_bytes()


def truth(data: bytes) -> tuple[pydicom.FileDataset, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        return dataset, dataset.pixel_array


def made(pixels: np.ndarray, **elements: object) -> bytes:
    """An uncompressed monochrome DICOM file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("name", COLOUR_FILES)
def test_colour_becomes_luma(name: str) -> None:
    data = shipped(name)
    dataset, pixels = truth(data)
    frames = pixels.reshape(-1, *pixels.shape[-3:]).astype(float)
    expected = frames @ LUMA * 255 / (2**dataset.BitsStored - 1)
    found = np.array(list(decode_frames(data)))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1.5


def test_palette() -> None:
    data = shipped("examples_palette.dcm")
    dataset, pixels = truth(data)
    colours = apply_color_lut(pixels, dataset)
    expected = colours.astype(float) @ LUMA / (257 if colours.dtype == np.uint16 else 1)
    assert np.abs(decode(data) - expected).max() <= 1.5


@pytest.mark.parametrize("name", WINDOWED_FILES)
def test_window_is_applied(name: str) -> None:
    data = shipped(name)
    dataset, pixels = truth(data)
    values = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)
    least, greatest = 0, 2**dataset.BitsStored - 1
    if dataset.PixelRepresentation:
        least, greatest = -(2 ** (dataset.BitsStored - 1)), 2 ** (dataset.BitsStored - 1) - 1
    slope, offset = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
    least, greatest = float(least * slope + offset), float(greatest * slope + offset)
    expected = (values - least) / (greatest - least) * 255
    assert np.abs(decode(data) - expected).max() <= 1


@pytest.mark.parametrize("name", STRETCHED_FILES)
def test_deep_values_without_a_window_are_stretched(name: str) -> None:
    data = shipped(name)
    _, pixels = truth(data)
    frame = (pixels if pixels.ndim == 2 else pixels[0]).astype(float)
    expected = (frame - frame.min()) / np.ptp(frame) * 255
    assert np.abs(decode(data, ANY_SIZE) - expected).max() <= 1


def test_eight_bits_stay_as_stored_and_monochrome1_is_inverted() -> None:
    grey = texture(1)
    np.testing.assert_array_equal(decode(made(grey)), grey)
    inverted = made(grey, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode(inverted), 255 - grey)


def test_a_rescale_that_changes_nothing_is_none() -> None:
    rng = np.random.default_rng(0)
    empty = rng.integers(20, 25, (60, 80)).astype(np.uint8)
    data = made(empty, RescaleSlope=1, RescaleIntercept=0, RescaleType="US")
    np.testing.assert_array_equal(decode(data), empty)
    assert unusable_reason(decode(data)) is not None
    signed = (texture(1).astype(int) - 128).astype(np.int8)
    as_stored = decode(made(signed, RescaleSlope="1.000", RescaleIntercept="0"))
    np.testing.assert_array_equal(as_stored, texture(1))


@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 1, "RescaleIntercept": 0}])
def test_twelve_bits_are_stretched_whether_or_not_their_rescale_changes_nothing(
    rescale: dict[str, int],
) -> None:
    values = np.linspace(100, 900, 32 * 32).astype(np.uint16).reshape(32, 32)
    grey = decode(made(values, BitsStored=12, HighBit=11, **rescale))
    assert (grey.min(), grey.max()) == (0, 255)


@pytest.mark.parametrize("rescale", [(2, 0), (1, -10), (0.5, 3)])
def test_eight_bits_that_stand_for_other_values_are_stretched(rescale: tuple[float, float]) -> None:
    values = np.linspace(20, 60, 32 * 32).astype(np.uint8).reshape(32, 32)
    grey = decode(made(values, RescaleSlope=rescale[0], RescaleIntercept=rescale[1]))
    assert (grey.min(), grey.max()) == (0, 255)


def test_signed_eight_bits_keep_their_order() -> None:
    signed = (texture(1).astype(int) - 128).astype(np.int8)
    np.testing.assert_array_equal(decode(made(signed)), texture(1))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_agree_with_pydicom(function: str) -> None:
    values = np.linspace(0, 4095, 32 * 32).astype(np.uint16).reshape(32, 32)
    data = made(
        values,
        BitsStored=12,
        HighBit=11,
        WindowCenter=1500,
        WindowWidth=1000,
        VOILUTFunction=function,
    )
    dataset, pixels = truth(data)
    expected = apply_voi_lut(pixels, dataset) / 4095 * 255
    assert np.abs(decode(data) - expected).max() <= 1


def test_frames_are_decoded_one_by_one() -> None:
    stack = np.array([texture(seed) for seed in range(4)])
    data = made(stack)
    assert probe(data).frames == 4
    np.testing.assert_array_equal(np.array(list(decode_frames(data))), stack)
    np.testing.assert_array_equal(decode(data, frame=2), stack[2])
    with pytest.raises(ImageError, match="more than 3 frames"):
        probe(data, ImageLimits(max_frames=3))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MR_truncated.dcm", "truncated-image"),
        ("waveform_ecg.dcm", "unsupported-dicom"),
        ("rtplan.dcm", "unsupported-dicom"),
        ("badVR.dcm", "unreadable-image"),
        ("SC_rgb_small_odd.dcm", "too-small"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "unreadable-image"),
    ],
)
def test_what_is_no_usable_image_is_refused(name: str, kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(shipped(name))
    assert caught.value.kind == kind


def test_sizes_are_checked_before_pixels_are_decoded() -> None:
    data = made(texture(1), Rows=60_000, Columns=60_000)
    with pytest.raises(ImageError, match="60000 x 60000"):
        decode(data)
    grey = np.zeros((2000, 2000), np.uint8)
    deflated = made(grey, syntax=DeflatedExplicitVRLittleEndian)
    assert len(deflated) < 20_000
    with pytest.raises(ImageError, match="deflated"):
        decode(deflated, ImageLimits(max_bytes=100_000))
    np.testing.assert_array_equal(decode(deflated), grey)


def test_a_compressed_frame_must_have_the_size_that_the_header_says() -> None:
    dataset = pydicom.dcmread(io.BytesIO(shipped("examples_jpeg2k.dcm")))
    dataset.Rows, dataset.Columns = 64, 64
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(ImageError, match="compressed as 640 x 480"):
        decode(buffer.getvalue())


def test_a_panic_of_the_rle_decoder_is_an_image_error() -> None:
    dataset = pydicom.dcmread(io.BytesIO(shipped("MR_small_RLE.dcm")))
    segments, first, second = 2, 64, 2064
    header = struct.pack("<16I", segments, first, second, *[0] * 13)
    dataset.PixelData = encapsulate([header + b"\x81\x00" * 6000])
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(ImageError) as caught:
        decode(buffer.getvalue())
    assert caught.value.kind == "unreadable-image"


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(["SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm", "MR_small.dcm"]),
    edits=st.lists(st.tuples(st.integers(132, 40_000), st.integers(0, 255)), max_size=10),
    length=st.integers(133, 40_000),
)
def test_mangled_bytes_give_an_image_or_an_image_error(
    name: str, edits: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(shipped(name))
    for place, value in edits:
        data[place % len(data)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            frames = list(decode_frames(bytes(data[:length]), ImageLimits(max_pixels=10**6)))
        except ImageError:
            return
    assert all(frame.dtype == np.uint8 and frame.ndim == 2 for frame in frames)
