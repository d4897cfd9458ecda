"""Near-duplicates: what is found among many images, and that every pair is looked at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_samples import encode, texture
from fetal_core.duplicates import MAX_HAMMING, MIN_CORRELATION, find_near, near_pairs
from fetal_core.fingerprint import THUMB_HW, fingerprint_frame
from fetal_core.images import decode


def all_pairs(
    hashes: np.ndarray, owners: np.ndarray, pixels: np.ndarray, thumbs: np.ndarray
) -> list[tuple[int, int]]:
    return [
        tuple(p) for block in near_pairs(hashes, owners, pixels, thumbs) for p in block.tolist()
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 40))
def test_pairs_are_those_of_an_exhaustive_search(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    flips = generator.integers(0, 64, (count, 4))
    hashes = np.array([sum({1 << int(bit) for bit in bits}) for bits in flips], np.uint64)
    owners, pixels = generator.integers(0, 5, (2, count))
    base = generator.integers(0, 200, 288)
    thumbs = np.clip(base + generator.normal(0, 12, (count, 288)), 0, 255).astype(np.uint8)
    expected = [
        (i, j)
        for i, j in itertools.combinations(range(count), 2)
        if owners[i] != owners[j]
        and pixels[i] != pixels[j]
        and (int(hashes[i]) ^ int(hashes[j])).bit_count() <= MAX_HAMMING
        and np.corrcoef(thumbs[i], thumbs[j])[0, 1] >= MIN_CORRELATION
    ]
    found = all_pairs(hashes, owners, pixels, thumbs)
    assert found == expected


def test_pairs_are_found_across_blocks() -> None:
    count = 1500
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, count, dtype=np.uint64)
    thumbs = generator.integers(0, 256, (count, 288), dtype=np.uint8)
    hashes[1400], thumbs[1400] = hashes[3] ^ np.uint64(0b101), thumbs[3]
    everyone = np.arange(count)
    assert all_pairs(hashes, everyone, everyone, thumbs) == [(3, 1400)]


def test_a_crowd_of_like_images_is_one_finding() -> None:
    count = 1300
    generator = np.random.default_rng(0)
    thumbs = generator.integers(0, 256, 288) + generator.normal(0, 2, (count, 288))
    rows = [
        {"image_id": f"i{i}", "patient": f"p{i}", "path": f"{i}.png", "row": i, "dhash": 9,
         "pixel_hash": f"{i}"}
        for i in range(count)
    ]  # fmt: skip
    problems = find_near(rows, np.clip(thumbs, 0, 255).astype(np.uint8))
    assert len(problems) == 1
    assert f"{count} times" in problems[0].reason


def test_flat_images_are_not_alike() -> None:
    flat = np.full((3, 288), 7, np.uint8)
    numbers = np.arange(3)
    assert all_pairs(np.zeros(3, np.uint64), numbers, numbers, flat) == []


@pytest.mark.parametrize("change", ["jpeg", "smaller", "darker"])
def test_a_changed_copy_keeps_its_fingerprint(change: str) -> None:
    grey = texture(1, 200, 300)
    changed = {
        "jpeg": decode(encode(grey, "JPEG", quality=60)),
        "smaller": np.asarray(Image.fromarray(grey).resize((150, 100))),
        "darker": (grey * 0.8).astype(np.uint8),
    }[change]
    first, second = fingerprint_frame(grey), fingerprint_frame(changed)
    assert first.pixel_hash != second.pixel_hash
    assert (first.dhash ^ second.dhash).bit_count() <= MAX_HAMMING
    thumbs = [np.frombuffer(item.thumb, np.uint8) for item in (first, second)]
    assert np.corrcoef(*thumbs)[0, 1] >= MIN_CORRELATION


def test_the_difference_hash_by_hand() -> None:
    rising = np.tile(np.arange(0, 180, 10, dtype=np.uint8), (16, 1))
    assert rising.shape == THUMB_HW
    assert fingerprint_frame(rising).dhash == 2**64 - 1
    assert fingerprint_frame(rising[:, ::-1]).dhash == 0
