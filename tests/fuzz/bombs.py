"""Small files that claim, or inflate to, far more than they should."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from itertools import pairwise

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.encaps import get_frame

from data_samples import encode, texture
from seeds import compressed, dicom_dataset, dicom_file, seeds

_ZEROS = 24 * 2**20
_ADOBE_DEFLATE = 8
_JPEG_SCAN = b"\xff\xda"


@cache
def bombs() -> dict[str, bytes]:
    """All of them by name."""
    return _png_bombs() | _tiff_bombs() | _jpeg_bombs() | _bmp_bombs() | _dicom_bombs()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, depth: int = 8, *chunks: bytes, pixels: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = b"".join(chunks) + _chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + body + _chunk(b"IEND", b"")


def _png_bombs() -> dict[str, bytes]:
    packed = zlib.compress(bytes(_ZEROS), 9)
    pixels = (b"\x00" + bytes(56)) * 40
    largest = 2**31 - 1
    whole = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(whole, "PNG")
    return {
        "png true size": whole.getvalue(),
        "png claims most": _png(largest, largest),
        "png claims a line": _png(1_000_000, 16),
        "png claims no width": _png(0, 50),
        "png inflates beyond its size": _png(56, 40, pixels=bytes(_ZEROS)),
        "png text": _png(56, 40, 8, _chunk(b"zTXt", b"a\x00\x00" + packed), pixels=pixels),
        "png profile": _png(56, 40, 8, _chunk(b"iCCP", b"a\x00\x00" + packed), pixels=pixels),
        "png exif": _png(56, 40, 8, _chunk(b"eXIf", _overlapping()), pixels=pixels),
        "png chunks": _png(56, 40, 8, *[_chunk(b"teSt", b"")] * 60_000, pixels=pixels),
    }


def _tiff(tags: list[tuple[int, int, int, int]], rest: bytes = b"", following: int = 0) -> bytes:
    """Little-endian, of one directory of (tag, type, count, value); ``rest`` lies behind it."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\x00" + struct.pack("<I", 8) + directory + rest


def _overlapping() -> bytes:
    """A directory of 30,000 values that all are the same 700 kB."""
    count = 30_000
    tags = [(0x8000 + tag, 7, 350_000, 8) for tag in range(count)]
    return _tiff(tags, bytes(16))


def _grey_tiff(following: int = 0, packed: bytes = b"", **changes: int) -> bytes:
    values = {"width": 56, "height": 40, "bits": 8, "coding": 1, "samples": 1, "rows": 40}
    values |= {"bytes": 56 * 40} | changes
    tags = {256: "width", 257: "height", 258: "bits", 259: "coding", 277: "samples"}
    tags |= {322: "tile_width", 323: "tile_height"} if "tile_width" in values else {278: "rows"}
    places = (324, 325) if "tile_width" in values else (273, 279)
    entries = [(tag, 4, 1, values[name]) for tag, name in tags.items()] + [(262, 3, 1, 1)]
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries += [(places[0], 4, 1, start), (places[1], 4, 1, values["bytes"])]
    return _tiff(entries, packed or bytes(56 * 40), following)


def _tiff_bombs() -> dict[str, bytes]:
    packed = zlib.compress(bytes(_ZEROS), 9)
    deflated = {"coding": _ADOBE_DEFLATE, "packed": packed, "bytes": len(packed)}
    most = 2**32 - 1
    first, second = _grey_tiff(8), _grey_tiff(most)
    return {
        "tiff loops": first,
        "tiff goes nowhere": second,
        "tiff claims most": _grey_tiff(width=most, height=most),
        "tiff claims bytes": _grey_tiff(bytes=most),
        "tiff claims rows": _grey_tiff(rows=most),
        "tiff claims samples": _grey_tiff(samples=65_535),
        "tiff claims bits": _grey_tiff(bits=64),
        "tiff inflates": _grey_tiff(**deflated),
        "tiff inflates rows": _grey_tiff(**deflated, rows=most),
        "tiff inflates a tile": _grey_tiff(**deflated, tile_width=30_000, tile_height=30_000),
        "tiff inflates a long tile": _grey_tiff(**deflated, tile_width=16, tile_height=2**26),
        "tiff of a packed tile": _grey_tiff(coding=32773, tile_width=30_000, tile_height=30_000),
        "tiff overlaps": _overlapping(),
        "tiff directories": _directories(400),
        "tiff entries": _entries(400),
    }


def _entries(count: int) -> bytes:
    """Directories of 60,000 entries each, all but one of which they share."""
    entry = struct.pack("<HHII", 0x8000, 3, 1, 0)
    after = struct.pack("<I", 8 + 12)
    head = struct.pack("<H", 60_000) + entry
    return b"II*\x00" + struct.pack("<I", 8) + head[:2] * count + entry * 60_000 + after


def _directories(count: int) -> bytes:
    one = _grey_tiff()[8:]
    starts = [8 + len(one) * index for index in range(count + 1)]
    end = 2 + 12 * 9
    chain = (one[:end] + struct.pack("<I", after) + one[end + 4 :] for _, after in pairwise(starts))
    return b"II*\x00" + struct.pack("<I", 8) + b"".join(chain)


def _jpeg_size(data: bytes, width: int, height: int) -> bytes:
    at = data.find(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def many_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG file whose last scan comes again and again."""
    start = data.rfind(_JPEG_SCAN)
    return data[:start] + data[start:-2] * count + data[-2:]


def _jpeg_bombs() -> dict[str, bytes]:
    plain, progressive = seeds()["jpeg"], seeds()["jpeg progressive"]
    blank = encode(np.zeros((960, 960), np.uint8), "JPEG", progressive=True)
    exif = b"Exif\x00\x00" + _overlapping()
    steps = range(0, len(exif), 65_000)
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
        for part in (b"Exif\x00\x00" * (at > 0) + exif[at : at + 65_000] for at in steps)
    )
    return {
        "jpeg claims most": _jpeg_size(plain, 65_535, 65_535),
        "jpeg claims the limit": _jpeg_size(plain, 1_000, 1_000),
        "jpeg claims no height": _jpeg_size(plain, 56, 0),
        "jpeg scans": many_scans(blank, 3_000),
        "jpeg small scans": many_scans(progressive, 3_000),
        "jpeg exif": plain[:2] + segments + plain[2:],
    }


def _bmp_bombs() -> dict[str, bytes]:
    data = seeds()["bmp colour"]

    def changed(place: int, layout: str, *values: int) -> bytes:
        return data[:place] + struct.pack(layout, *values) + data[place + struct.calcsize(layout) :]

    rle = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54 + 1024)
    rle += struct.pack("<IiiHHIIiiII", 40, 1_000, 1_000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
    return {
        "bmp claims most": changed(18, "<ii", 2**31 - 1, 2**31 - 1),
        "bmp claims less than none": changed(18, "<ii", -(2**31), -(2**31)),
        "bmp claims an offset": changed(10, "<I", 2**32 - 1),
        "bmp claims a header": changed(14, "<I", 2**32 - 1),
        "bmp of moves": rle + b"\x00\x02\xff\xff" * 4_000,
        "bmp of nothing": rle + b"\x00\x00" * 200_000,
        "bmp of runs": rle + b"\xff\x07" * 200_000,
    }


def _dicom_bombs() -> dict[str, bytes]:
    native = dicom_dataset(seeds()["dicom native"])
    plain, implicit = str(uid.ExplicitVRLittleEndian), str(uid.ImplicitVRLittleEndian)
    empty = b"".join(struct.pack("<HH2sH", 9, tag, b"LO", 0) for tag in range(60_000))
    nested = _OPEN_SEQUENCE + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    numbers = b"1\\" * 400_000
    charset = struct.pack("<HHI", 8, 5, len(numbers)) + numbers
    window = struct.pack("<HHI", 0x28, 0x1050, len(numbers)) + numbers
    return {
        "dicom elements": dicom_file(plain, empty * 2),
        "dicom elements in a sequence": dicom_file(plain, nested + empty * 2),
        "dicom sequences": dicom_file(plain, nested * 40_000),
        "dicom character sets": dicom_file(implicit, charset),
        "dicom windows": dicom_file(implicit, window + native),
        "dicom syntaxes": dicom_file("1\\" * 30_000, native),
        **_deflated_bombs(native),
        **_coded_bombs(),
    }


_OPEN_SEQUENCE = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff"


def _deflated_bombs(native: bytes) -> dict[str, bytes]:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = squeezer.compress(native + bytes(_ZEROS)) + squeezer.flush()
    syntax = str(uid.DeflatedExplicitVRLittleEndian)
    padding = struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, 2_000) + bytes(2_000)
    late = dicom_file(syntax, deflated)
    return {
        "dicom inflates": late,
        "dicom inflates, no group length": dicom_file(syntax, deflated, -1),
        "dicom inflates, false group length": dicom_file(syntax, deflated, 0),
        "dicom inflates, long header": late[:144] + padding + late[144:],
    }


def _coded_bombs() -> dict[str, bytes]:
    native, syntax = seeds()["dicom native"], uid.JPEG2000Lossless
    packed = pydicom.dcmread(io.BytesIO(seeds()[f"dicom {syntax.name}"]))
    stream = get_frame(packed.PixelData, 0, number_of_frames=2)
    scans = many_scans(encode(texture(1), "JPEG", progressive=True), 3_000)
    parts = compressed(native, [b"\xff\xd8"] * 100, uid.JPEGBaseline8Bit)
    return {
        "dicom j2k components": compressed(native, [_components(stream, 16_000)], syntax),
        "dicom j2k size": compressed(native, [_sized(stream, 30_000)], syntax),
        "dicom j2k hidden": compressed(native, [_hidden(stream)], syntax),
        "dicom jpeg scans": compressed(native, [scans], uid.JPEGBaseline8Bit),
        "dicom jpeg parts": parts.replace(b"\xff\xd8" + bytes(2), b"\xff\xd8\xff\xd9"),
    }


def _sized(stream: bytes, side_px: int) -> bytes:
    return stream[:8] + struct.pack(">II", side_px, side_px) + stream[16:]


def _components(stream: bytes, count: int) -> bytes:
    """A JPEG 2000 stream that claims so many samples a pixel (ITU-T T.800, A.5.1)."""
    old = struct.unpack_from(">H", stream, 40)[0]
    head = stream[:4] + struct.pack(">H", 38 + 3 * count) + stream[6:40]
    return head + struct.pack(">H", count) + b"\x07\x01\x01" * count + stream[42 + 3 * old :]


def _hidden(stream: bytes) -> bytes:
    """A JP2 file (ITU-T T.800, I) with a small stream in a free box before a large one."""
    side_px = 30_000
    small, large = stream[:60], _sized(stream, side_px)
    head = struct.pack(">IIHBBBB", side_px, side_px, 1, 7, 7, 0, 0)
    described = struct.pack(">I4s", 22, b"ihdr") + head
    described += b"\x00\x00\x00\x0fcolr\x01\x00\x00\x00\x00\x00\x11"
    boxes = (
        b"\x00\x00\x00\x0cjP  \r\n\x87\n",
        b"\x00\x00\x00\x14ftypjp2 \x00\x00\x00\x00jp2 ",
        struct.pack(">I4s", len(small) + 8, b"free") + small,
        struct.pack(">I4s", len(described) + 8, b"jp2h") + described,
        struct.pack(">I4s", len(large) + 8, b"jp2c") + large,
    )
    return b"".join(boxes)
