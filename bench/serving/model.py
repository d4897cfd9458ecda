"""The bundle that all contenders serve: ResNet50 at 224 px with an INT8 engine."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch

from fetal_core import shards
from fetal_core.bundle import Bundle, BundleInfo
from fetal_core.export import ExportConfig, export
from fetal_core.images import decode
from fetal_core.model import PlaneClassifier
from fetal_core.preprocess import PreprocessConfig, preprocess
from fetal_core.rows import RowStore

CLASSES = (
    "Fetal abdomen",
    "Fetal brain",
    "Fetal femur",
    "Fetal thorax",
    "Maternal cervix",
    "Other",
)


def write_bundle(folder: Path, images: list[Path]) -> str:
    """A bundle with random weights: speed does not depend on them, so any agreement will do."""
    info = BundleInfo(
        architecture="resnet50",
        classes=CLASSES,
        preprocess=PreprocessConfig(size_px=224),
        loss="cross_entropy",
        mean=(0.2,),
        std=(0.2,),
        threshold=0.5,
    )
    torch.manual_seed(0)
    model = PlaneClassifier(info.architecture, len(info.classes), mean=info.mean, std=info.std)
    uri = str(folder / "bundle")
    Bundle(info, model.eval()).save(uri)
    rows = store(images[:64], info.preprocess)
    anything = ExportConfig(min_agreement=0, max_accuracy_loss=1, calibration_images=64)
    export(uri, "openvino-int8", rows, rows, anything, lambda step, done, total: None)
    return uri


def store(images: list[Path], config: PreprocessConfig) -> RowStore:
    """The images as rows of a shard, with labels that mean nothing."""
    rows = [
        {
            "image_id": path.stem,
            "patient": path.stem,
            "label": number % len(CLASSES),
            "image": preprocess(decode(path.read_bytes()), config).tobytes(),
            "pixel_sum": 0,
            "pixel_sum_squares": 0,
        }
        for number, path in enumerate(images)
    ]
    return RowStore([pa.Table.from_pylist(rows, shards.SCHEMA)], config.size_px)
