"""Files changed at random, in ways that reach deep into decoders."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from pydicom import uid

from seeds import dicom_dataset, dicom_file, seeds

Random = random.Random

EXTREMES = (0, 1, 2, 3, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**31 - 1, 2**31)
EXTREMES += (2**32 - 1,)
_SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.MPEG2MPML,
    uid.HTJ2KLossless,
    uid.UID("1.2.3"),
)
_UNSIGNED = (0x0002, 0x0006, 0x0010, 0x0011, 0x0100, 0x0101, 0x0102, 0x0103)
"""Elements of group 0028 in two bytes: samples, planes, rows, columns, bits and their sign."""


def truncated(data: bytes, chance: Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def flipped(data: bytes, chance: Random) -> bytes:
    """Some bits changed, mostly near the beginning, where the headers are."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        end = chance.choice((64, 400, len(changed), len(changed)))
        changed[chance.randrange(min(end, len(changed)))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def spliced(data: bytes, chance: Random) -> bytes:
    """The beginning of one file and the end of another, or one within the other."""
    other = chance.choice(list(seeds().values()))
    at, start = chance.randrange(len(data) + 1), chance.randrange(len(other) + 1)
    tail = data[at:] if chance.random() < 0.3 else b""
    return data[:at] + other[start:] + tail


def extreme(data: bytes, chance: Random) -> bytes:
    """Numbers in the headers replaced by the least and greatest of their kind."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        size = chance.choice((1, 2, 4))
        value = (chance.choice(EXTREMES) % 256**size).to_bytes(
            size, chance.choice(("little", "big"))
        )
        at = chance.randrange(min(len(changed), chance.choice((64, 400, 1200, len(changed)))))
        changed[at : at + size] = value
    return bytes(changed)


def shuffled(data: bytes, chance: Random) -> bytes:
    """Blocks left out, said twice or moved."""
    parts = data
    for _ in range(chance.choice((1, 2, 3))):
        start = chance.randrange(len(parts) + 1)
        end = min(len(parts), start + chance.choice((1, 4, 12, 100, 1000)))
        block = parts[start:end] * chance.choice((0, 2, 2, 50))
        parts = parts[:start] + block + parts[end:]
    return parts


def lying(data: bytes, chance: Random) -> bytes:
    """A DICOM file whose elements of group 0028 are false; others are returned as they are."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        tag = struct.pack("<HH", 0x28, chance.choice(_UNSIGNED)) + b"US\x02\x00"
        value = struct.pack("<H", chance.choice((*EXTREMES[:11], 8, 16, 32, 40, 56)))
        at = data.find(tag)
        if at >= 0:
            data = data[: at + 8] + value + data[at + 10 :]
    if chance.random() < 0.4:
        frames = chance.choice((b"0 ", b"-1", b"99", b"1 ", b"1.5 ", b"1e9 ", b"2147483647", b"x "))
        old = b"\x28\x00\x08\x00IS\x02\x002 "
        data = data.replace(old, old[:6] + struct.pack("<H", len(frames)) + frames)
    if chance.random() < 0.3:
        data = data.replace(b"MONOCHROME2 ", chance.choice((b"PALETTECOLOR", b"MONOCHROME1 ")))
        data = data.replace(b"MONOCHROME2 ", b"YBR_FULL_422")
    return data


def recoded(data: bytes, chance: Random) -> bytes:
    """A DICOM file under another transfer syntax than its own."""
    syntax = chance.choice(_SYNTAXES)
    return dicom_file(syntax, dicom_dataset(data), chance.choice((None, None, None, -1, 0, 10**6)))


MUTATORS: dict[str, Callable[[bytes, Random], bytes]] = {
    "truncated": truncated,
    "bits": flipped,
    "polyglot": spliced,
    "extremes": extreme,
    "blocks": shuffled,
}
