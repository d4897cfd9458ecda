"""What the hosts work on, and what one process makes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from clusters import Store
from fetal_core.audit import audit
from fetal_core.checkpoint import WEIGHTS
from fetal_core.config import merge, parse
from fetal_core.recipe import Recipe
from fetal_core.rows import RowStore
from fetal_core.run_context import LocalContext
from fetal_core.runlog import METRICS
from fetal_core.shard_files import write_shard
from fetal_core.shards import ShardIndex, build_index, plan
from fetal_core.split import make_split
from fetal_core.train import fit
from fetal_core.training_data import TrainingData

PLANES = ("Fetal brain", "Fetal femur")
SETTINGS: dict[str, Any] = {
    "preprocess": {"size_px": 64},
    "model": {"architecture": "squeezenet1_1", "weights": "none"},
    "optim": {"name": "sgd", "lr": 0.001},
    "train": {"epochs": 4, "batch_size": 8, "micro_batch": 4, "precision": "fp32"},
}


def recipe(**tables: Mapping[str, Any]) -> Recipe:
    return parse(Recipe, merge(SETTINGS, tables), "test")


def flags(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The command-line flags of some settings."""
    return [
        word
        for table, values in tables.items()
        for name, value in values.items()
        for word in (f"--{table}.{name}".replace("_", "-"), str(value))
    ]


def write_images(folder: Path, patients: int, views: int) -> Path:
    """Smooth noise with a bright half, which tells the plane; the table names patients."""
    (folder / "images").mkdir(parents=True)
    lines = ["Image_name,Patient_num,Plane"]
    for number in range(patients * views):
        patient, plane = number // views, number // views % 2
        coarse = np.random.default_rng(number).integers(0, 120, (6, 8), dtype=np.uint8)
        coarse[plane * 3 : plane * 3 + 3] += 15
        picture = Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        (folder / f"images/{number:04d}.png").write_bytes(buffer.getvalue())
        lines.append(f"{number:04d},{patient},{PLANES[plane]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def shards_of(cohort: Path, settings: Recipe, out: Path) -> ShardIndex:
    """The shards of a cohort, made by this process alone."""
    manifest = audit(str(cohort), settings.labels, settings.limits).raise_on_error()
    split = make_split(manifest, settings.split)
    tasks = plan(manifest, split.parts, settings.preprocess)
    made = [
        write_shard(task, manifest.root, str(out), settings.preprocess, settings.limits)
        for task in tasks
    ]
    files = {file.file: file for file in made}
    return build_index(manifest, split.hash, settings.preprocess, tasks, files)


def history(store: Store, run: str) -> list[dict[str, Any]]:
    """Records of a run's epochs so far."""
    return [json.loads(line) for line in store.get(f"{run}/{METRICS}").splitlines()]


class Reference:
    """Training on the same shards in this process alone, as far as anybody has asked."""

    def __init__(self, shards: Path, folder: Path) -> None:
        index = ShardIndex.load(str(shards))
        self._folder = folder
        self._data = TrainingData(
            *(_rows(index, shards, part) for part in ("train", "val")),
            index.classes,
            index.mean,
            index.std,
        )

    def expect(self, store: Store, run: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """A run in the store has the same losses, and its bundle the same weights."""
        config = recipe(**tables).fit_config()
        folder = self._folder / run.replace("/", "-")
        context = LocalContext(folder)
        torch.set_num_threads(1)
        expected = fit(config, self._data, context).history
        found = history(store, run)
        assert [record["epoch"] for record in found] == [record["epoch"] for record in expected]
        assert len({record["train_loss"] for record in expected}) == len(expected)
        for key in ("train_loss", "val_loss"):
            assert [record[key] for record in found] == pytest.approx(
                [record[key] for record in expected], rel=1e-4, abs=1e-4
            ), key
        with context.checkpoints.best() as best:
            weights = dict(_weights(best / WEIGHTS))
        bundle = store.fetch(f"{run}/bundle", folder / "bundle")
        for key, value in _weights(bundle / "weights.safetensors"):
            torch.testing.assert_close(value, weights.pop(key), atol=1e-4, rtol=1e-3)
        assert not weights


def _rows(index: ShardIndex, shards: Path, part: str) -> RowStore:
    tables = [pq.read_table(shards / file.file) for file in index.parts[part]]
    return RowStore(tables, index.preprocess.size_px)


def _weights(file: Path) -> Iterator[tuple[str, Tensor]]:
    yield from load_file(file).items()
