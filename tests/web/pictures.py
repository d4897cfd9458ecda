"""Small synthetic files for the page: one bright quadrant decides the plane."""

from __future__ import annotations

import io

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage


def picture(
    quadrant: int, contrast: int = 90, height: int = 180, width: int = 260
) -> NDArray[np.uint8]:
    """Speckle in a sector, brighter in one quadrant (0 to 3 in reading order)."""
    generator = np.random.default_rng(quadrant)
    rows_H1, columns_1W = np.ogrid[:height, :width]
    depth_HW = np.hypot(rows_H1 + 20, columns_1W - width / 2) / height
    sector_HW = (np.abs(columns_1W - width / 2) < 0.8 * (rows_H1 + 20)) & (depth_HW < 1.1)
    row, column = divmod(quadrant, 2)
    chosen_HW = (rows_H1 * 2 // height == row) & (columns_1W * 2 // width == column)
    speckle_HW = generator.rayleigh(30, (height, width)) * (0.6 + 0.4 * np.cos(depth_HW * 9))
    return (speckle_HW * sector_HW + contrast * chosen_HW).clip(0, 255).astype(np.uint8)


def encoded(image_HW: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HW).save(buffer, kind)
    return buffer.getvalue()


def tiff(frames: list[NDArray[np.uint8]]) -> bytes:
    pages, buffer = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def dicom(frames: list[NDArray[np.uint8]]) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["page"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.NumberOfFrames = len(frames)
    file.Rows, file.Columns = frames[0].shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation = 7, 0
    file.PixelData = np.stack(frames).tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
