"""Valid files to mutate: all formats and codings that the service reads."""

from __future__ import annotations

import io
import struct
from functools import cache

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from data_samples import encode, texture
from serving_samples import cine, tiff

CANARY = "Zyxwvut^Canary"
"""Stands for a patient's or a file's name: it must never reach a log."""


@cache
def seeds() -> dict[str, bytes]:
    """Files by name; those of DICOM begin with ``dicom``."""
    return _pictures() | {f"dicom {name}": data for name, data in _dicoms().items()}


def _pictures() -> dict[str, bytes]:
    grey = texture(1)
    colour = np.stack([texture(seed) for seed in range(3)], axis=2)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, CANARY
    see_through = np.dstack([colour, grey])
    return {
        "png": encode(grey),
        "png 16 bit": encode(grey.astype(np.uint16) * 257),
        "png rgba": encode(see_through),
        "png exif": encode(grey, "PNG", exif=exif),
        "jpeg": encode(grey, "JPEG"),
        "jpeg progressive": encode(colour, "JPEG", progressive=True, exif=exif),
        "bmp": encode(grey, "BMP"),
        "bmp colour": encode(colour, "BMP"),
        "tiff": tiff(2),
        **{
            f"tiff {coding}": encode(colour, "TIFF", compression=coding, description=CANARY)
            for coding in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        },
    }


def _dicoms() -> dict[str, bytes]:
    native = pydicom.dcmread(io.BytesIO(cine(2)))
    native.PatientName = CANARY
    native.WindowCenter, native.WindowWidth = 100, 200
    found = {"native": _written(native)}
    for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        found[syntax.name] = _written(native, syntax)
    found["deflated"] = _written(native, uid.DeflatedExplicitVRLittleEndian)
    for syntax in (uid.RLELossless, uid.JPEG2000Lossless):
        packed = pydicom.dcmread(io.BytesIO(found["native"]))
        packed.compress(syntax)
        found[syntax.name] = _written(packed, syntax)
    jpegs = [encode(texture(seed), "JPEG") for seed in range(2)]
    return found | {"jpeg": compressed(found["native"], jpegs, uid.JPEGBaseline8Bit)}


def compressed(data: bytes, streams: list[bytes], syntax: uid.UID) -> bytes:
    """A DICOM file with these coded frames in the place of its own."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.PixelData = encapsulate(streams)
    dataset.NumberOfFrames = len(streams)
    return _written(dataset, syntax)


def _written(dataset: pydicom.FileDataset, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
    buffer = io.BytesIO()
    pydicom.dcmwrite(
        buffer,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
    )
    return buffer.getvalue()


def dicom_file(syntax: str, dataset: bytes, group_length: int | None = None) -> bytes:
    """A DICOM file whose header says no more than the transfer syntax (PS3.10, 7.1).

    Args:
        syntax: its identifier.
        dataset: the bytes behind the header.
        group_length: of the header; None for the true one, negative to leave it out.
    """
    value = syntax.encode() + b"\x00" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value
    length = len(element) if group_length is None else group_length
    head = struct.pack("<HH2sHI", 2, 0, b"UL", 4, length) if length >= 0 else b""
    return bytes(128) + b"DICM" + head + element + dataset


def dicom_dataset(data: bytes) -> bytes:
    """The bytes behind the header of a DICOM file."""
    return data[144 + int(struct.unpack_from("<I", data, 140)[0]) :]
