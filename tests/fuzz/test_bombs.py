"""Bombs are refused before they go off, whatever they hide behind."""

from __future__ import annotations

import pytest

from bombs import bombs
from campaign import SETTINGS
from fetal_core.errors import ImageError
from fetal_core.images import decode_frames, probe

TOO_LARGE = [
    "png true size",
    "png claims most",
    "png claims a line",
    "png chunks",
    "tiff claims most",
    "tiff inflates a tile",
    "tiff inflates a long tile",
    "tiff of a packed tile",
    "tiff overlaps",
    "tiff directories",
    "tiff entries",
    "jpeg claims most",
    "jpeg scans",
    "bmp claims most",
    "dicom elements",
    "dicom elements in a sequence",
    "dicom character sets",
    "dicom windows",
    "dicom inflates",
    "dicom inflates, no group length",
    "dicom inflates, false group length",
    "dicom inflates, long header",
    "dicom jpeg scans",
]
UNREADABLE = ["dicom j2k components", "dicom j2k size", "dicom j2k hidden"]


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_is_refused_as_such(name: str) -> None:
    with pytest.raises(ImageError) as refused:
        list(decode_frames(bombs()[name], SETTINGS.limits))
    assert refused.value.kind == "too-large"


@pytest.mark.parametrize("name", UNREADABLE)
def test_streams_of_another_size_than_the_header_says_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="is compressed as"):
        list(decode_frames(bombs()[name], SETTINGS.limits))


@pytest.mark.parametrize("name", bombs())
def test_no_bomb_passes_for_an_image_beyond_the_limit(name: str) -> None:
    assert claimed_px(bombs()[name]) <= SETTINGS.limits.max_pixels


def claimed_px(data: bytes) -> int:
    try:
        info = probe(data, SETTINGS.limits)
    except ImageError:
        return 0
    return info.width_px * info.height_px
