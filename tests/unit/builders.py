"""Small cohorts, stores, configurations and contexts, shared by the tests of the core."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from data_samples import write_folder
from fetal_core import shard_files, shards
from fetal_core.audit import audit
from fetal_core.bundle import Bundle, BundleInfo
from fetal_core.checkpoint import CheckpointStore, load_weights
from fetal_core.config import merge, parse
from fetal_core.fit_config import FitConfig
from fetal_core.images import ImageLimits
from fetal_core.labels import LabelsConfig
from fetal_core.manifest import Manifest
from fetal_core.model import PlaneClassifier, build
from fetal_core.preprocess import PreprocessConfig
from fetal_core.recipe import Recipe
from fetal_core.rows import RowStore
from fetal_core.run_context import Event, LocalContext
from fetal_core.split import Split, make_split
from fetal_core.training_data import TrainingData
from ray_jobs.workspace import Prepared
from required import lack

AUGMENT = {"horizontal_flip": 0.5, "rotation_deg": 20, "crop": 0.2, "speckle": 0.1}
CLASSES = ("abdomen", "brain", "femur", "thorax")
SIZE_PX = 32

_QUIET = dict.fromkeys(
    ("horizontal_flip", "rotation_deg", "crop", "brightness", "contrast", "gain", "speckle"), 0.0
)
_BASE: dict[str, Any] = {
    "model": {"architecture": "squeezenet1_1", "weights": "none"},
    "augment": _QUIET,
    "schedule": {"name": "constant"},
    "train": {"precision": "fp32", "epochs": 1, "batch_size": 8},
}


class InterruptionError(Exception):
    """Stands for a killed process."""


class InterruptedContext(LocalContext):
    """A local run that is killed after it has reported ``after`` epochs."""

    def __init__(
        self, folder: Path, after: int, on_event: Callable[[Event], None] | None = None
    ) -> None:
        super().__init__(folder, on_event=on_event)
        self._left = after

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None) -> None:
        super().report(metrics, save)
        self._left -= 1
        if self._left == 0:
            raise InterruptionError


def fit_config(**tables: Mapping[str, Any]) -> FitConfig:
    """SqueezeNet from scratch in float32, one epoch, no augmentation, but for ``tables``."""
    return parse(FitConfig, merge(_BASE, tables), "test")


def toy_images(labels_N: np.ndarray, seed: int, size_px: int = SIZE_PX) -> np.ndarray:
    """uint8 noise with one bright quadrant, which tells the label (0 to 3)."""
    generator = np.random.default_rng(seed)
    images_NHW = generator.integers(0, 60, (len(labels_N), size_px, size_px), dtype=np.uint8)
    half = size_px // 2
    for image_HW, label in zip(images_NHW, labels_N, strict=True):
        top, left = (int(label) // 2) * half, (int(label) % 2) * half
        image_HW[top : top + half, left : left + half] += 150
    return images_NHW


def shard_table(ids: list[str], labels_N: np.ndarray, images_NHW: np.ndarray) -> pa.Table:
    """An Arrow table with the columns of a shard."""
    rows = [
        {
            "image_id": image_id,
            "patient": f"P{int(image_id[1:]) // 2}",
            "label": int(label),
            "image": image_HW.tobytes(),
            "pixel_sum": int(image_HW.astype(np.int64).sum()),
            "pixel_sum_squares": int(np.square(image_HW.astype(np.int64)).sum()),
        }
        for image_id, label, image_HW in zip(ids, labels_N, images_NHW, strict=True)
    ]
    return pa.Table.from_pylist(rows, shards.SCHEMA)


def toy_store(rows: int, seed: int = 0, size_px: int = SIZE_PX) -> RowStore:
    """Toy images whose four labels go round; ids ``i000`` and so on."""
    labels_N = np.arange(rows) % len(CLASSES)
    ids = [f"i{row:03d}" for row in range(rows)]
    return RowStore([shard_table(ids, labels_N, toy_images(labels_N, seed, size_px))], size_px)


def toy_data(train: int = 24, val: int = 8, size_px: int = SIZE_PX) -> TrainingData:
    store = toy_store(train, seed=1, size_px=size_px)
    mean, std = store.mean_and_std()
    return TrainingData(store, toy_store(val, seed=2, size_px=size_px), CLASSES, mean, std)


def spoilt_data(train: int = 24, val: int = 9) -> TrainingData:
    """Toy data whose training image ``i005`` is white; see ``overflow_on_white``."""
    labels_N = np.arange(train) % len(CLASSES)
    images_NHW = toy_images(labels_N, seed=1)
    images_NHW[5] = 255
    ids = [f"i{row:03d}" for row in range(train)]
    store = RowStore([shard_table(ids, labels_N, images_NHW)], SIZE_PX)
    return replace(toy_data(train, val), train=store)


def overflow_on_white(module: nn.Module, inputs: tuple[Tensor], logits_NK: Tensor) -> Tensor:
    """Forward hook of a network that overflows on some images."""
    finite_N1 = (inputs[0].mean((1, 2, 3)) < 1).float().unsqueeze(1)
    return logits_NK / finite_N1


def comparable(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a run without its durations."""
    times = ("train_s", "epoch_s", "images_per_s")
    return [{key: v for key, v in record.items() if key not in times} for record in history]


def model_of(config: FitConfig, data: TrainingData, folder: Path) -> PlaneClassifier:
    size_px = data.train.size_px
    model = build(config.model, len(CLASSES), data.mean, data.std, 7, size_px)
    load_weights(folder, model)
    return model


def expect_equal_state(found: Any, expected: Any) -> None:
    """Bit-for-bit equality of nested containers of tensors and numbers."""
    assert type(found) is type(expected)
    if isinstance(found, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for key in found:
            expect_equal_state(found[key], expected[key])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for item, other in zip(found, expected, strict=True):
            expect_equal_state(item, other)
    else:
        assert found == expected


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a folder of images with a label table."""
    return audit(str(folder), LabelsConfig(), ImageLimits()).raise_on_error()


def write_prepared(folder: Path, patients: int = 12) -> tuple[Prepared, Recipe]:
    """A prepared cohort of small textures under ``folder``, and its recipe."""
    recipe = parse(
        Recipe,
        {
            "preprocess": {"size_px": SIZE_PX},
            "split": {"use_official_test": False},
            "model": {"architecture": "squeezenet1_1", "weights": "none"},
        },
        "test",
    )
    manifest = manifest_of(write_folder(folder / "cohort", patients=patients))
    prepared = Prepared(str(folder / "prepared"))
    split = make_split(manifest, recipe.split)
    manifest.save(prepared.manifest_uri)
    split.save(prepared.split_uri)
    write_index(manifest, split, prepared.shards_uri, recipe.preprocess)
    return prepared, recipe


def write_index(
    manifest: Manifest, split: Split, out: str, config: PreprocessConfig
) -> shards.ShardIndex:
    """All shards of a split and their index."""
    tasks = shards.plan(manifest, split.parts, config)
    files = {
        task.file: shard_files.write_shard(task, manifest.root, out, config, ImageLimits())
        for task in tasks
    }
    index = shards.build_index(manifest, split.hash, config, tasks, files)
    index.save(out)
    return index


def toy_bundle(**changes: Any) -> Bundle:
    """An untrained SqueezeNet that has been calibrated to temperature 2."""
    settings: dict[str, Any] = {
        "architecture": "squeezenet1_1",
        "classes": CLASSES,
        "preprocess": PreprocessConfig(size_px=SIZE_PX),
        "loss": "cross_entropy",
        "mean": (0.25,),
        "std": (0.2,),
        "temperature": 2.0,
        "threshold": 0.5,
    }
    info = BundleInfo(**(settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PlaneClassifier(info.architecture, len(info.classes), mean=info.mean, std=info.std)
    # An untrained head answers nearly the same for all images.
    model.head.weight.data.mul_(8)
    return Bundle(info, model.eval())


def kept(folder: Path, which: Literal["latest", "best"]) -> Path:
    """A checkpoint that a ``LocalContext`` in ``folder`` has kept."""
    location = CheckpointStore(str(folder)).location(which)
    assert location is not None, folder
    return Path(location)


@contextmanager
def disk_refuses_files_over(limit_bytes: int) -> Iterator[None]:
    """The operating system fails writes beyond a size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def disk_of(size_bytes: int, folder: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """A file system of its own while the block lasts, and what makes it much larger."""
    folder.mkdir()
    options = f"size={size_bytes}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        lack("to mount a small disk needs root and a kernel that allows it")
    larger = ["mount", "-o", f"remount,size={10 * size_bytes}", str(folder)]
    try:
        yield folder, lambda: subprocess.run(larger, check=True)
    finally:
        # Lazily: weights may still be mapped from a file there.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
