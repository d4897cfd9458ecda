"""Small folders of images with label tables, for the tests of the data stages."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fetal_core.manifest import Manifest

HEADER = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"


def texture(seed: int, height: int = 40, width: int = 56) -> npt.NDArray[np.uint8]:
    """A smooth random grey image, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: npt.NDArray[np.uint8], kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(
    folder: Path, planes: tuple[str, ...] = ("Fetal brain", "Fetal femur"), patients: int = 4
) -> Path:
    """Two images of each patient, whose plane goes round; FETAL_PLANES_DB's table."""
    (folder / "images").mkdir(parents=True)
    lines = [HEADER]
    for patient in range(patients):
        for view in range(2):
            name = f"P{patient}_{view}"
            plane = planes[patient % len(planes)]
            pixels = texture(patient * 10 + view)
            (folder / "images" / f"{name}.png").write_bytes(encode(pixels))
            lines.append(f"{name};{patient};{plane};Not A Brain;Op. 1;Aloka;1 \n")
    (folder / "labels.csv").write_text("".join(lines))
    return folder


def made_manifest(
    patients: list[str | None],
    labels: list[int],
    official_test: list[bool] | None = None,
    pixel_hashes: list[str] | None = None,
) -> Manifest:
    """A manifest without files, for the tests of splits."""
    rows = [
        {
            "image_id": f"img{index:05d}",
            "path": f"images/img{index:05d}.png",
            "frame": 0,
            "patient": patient,
            "plane": f"plane {label}",
            "label": label,
            "official_test": official_test[index] if official_test else None,
            "row": index + 2,
            "file_bytes": 1,
            "sha256": hashlib.sha256(str(index).encode()).hexdigest(),
            "pixel_hash": pixel_hashes[index] if pixel_hashes else f"pixels {index}",
            "dhash": index,
            "width_px": 64,
            "height_px": 48,
            "mode": "L",
        }
        for index, (patient, label) in enumerate(zip(patients, labels, strict=True))
    ]
    classes = [f"plane {label}" for label in range(max(labels) + 1)]
    return Manifest.from_rows(rows, classes, "/data")
