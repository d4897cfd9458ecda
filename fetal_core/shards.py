"""Shards: preprocessed uint8 images in Parquet, written once and read by every later stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fetal_core import storage
from fetal_core.config import digest
from fetal_core.errors import StorageError
from fetal_core.manifest import Manifest
from fetal_core.preprocess import PreprocessConfig
from fetal_core.statistics import moments

FORMAT = 1
INDEX = "index.json"
_TARGET_BYTES = 16 << 20
_MIN_ROWS, _MAX_ROWS = 16, 256

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("patient", pa.string()),
        ("label", pa.int32()),
        ("image", pa.binary()),
        ("pixel_sum", pa.int64()),
        ("pixel_sum_squares", pa.int64()),
    ]
)


@dataclass(frozen=True)
class ShardTask:
    """One shard file to write: its place and the rows that belong in it.

    Attributes:
        rows: dictionaries with ``image_id, path, frame, sha256, patient, label``.
    """

    part: str
    index: int
    rows: tuple[dict[str, Any], ...]

    @property
    def file(self) -> str:
        """Path below the shard folder."""
        return f"{self.part}/{self.index:05d}.parquet"


@dataclass(frozen=True)
class ShardFile:
    """One finished shard file."""

    file: str
    rows: int
    bytes: int
    pixel_sum: int
    pixel_sum_squares: int


@dataclass(frozen=True)
class ShardIndex:
    """What lies in a shard folder; written last, so its presence means that all files are whole.

    Attributes:
        fingerprint: hash of (manifest, parts, preprocessing, format).
        parts: files of each part, in order.
        class_counts: rows of each class in each part.
        mean: mean of the training part's pixels, in [0, 1].
        std: standard deviation of the same.
    """

    fingerprint: str
    manifest_hash: str
    split_hash: str
    classes: tuple[str, ...]
    preprocess: PreprocessConfig
    parts: dict[str, tuple[ShardFile, ...]]
    class_counts: dict[str, tuple[int, ...]]
    mean: float
    std: float

    def rows(self, part: str) -> int:
        """Number of images in a part; 0 for one that does not exist."""
        return sum(file.rows for file in self.parts.get(part, ()))

    def save(self, uri: str) -> None:
        """Write ``index.json`` into the shard folder."""
        values = asdict(self) | {"preprocess": self.preprocess.model_dump()}
        storage.write_json(storage.join(uri, INDEX), values)

    @classmethod
    def load(cls, uri: str) -> ShardIndex:
        """Read ``index.json`` of a shard folder.

        Raises:
            StorageError: there is none, or it is of another format.
        """
        path = storage.join(uri, INDEX)
        if not storage.is_file(path):
            raise StorageError(f"{uri}: no finished shards here. Run `fetal prepare` first.")
        values = storage.read_json(path)
        try:
            values["preprocess"] = PreprocessConfig(**values["preprocess"])
            values["parts"] = {
                part: tuple(ShardFile(**file) for file in files)
                for part, files in values["parts"].items()
            }
            values["class_counts"] = {k: tuple(v) for k, v in values["class_counts"].items()}
            values["classes"] = tuple(values["classes"])
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"{path}: not a shard index: {error!r}. Prepare again.") from None


def fingerprint(manifest: Manifest, split_hash: str, config: PreprocessConfig) -> str:
    """Hash of everything that determines the shards' content."""
    return digest([FORMAT, manifest.hash, split_hash, config.model_dump()])


def plan(
    manifest: Manifest, parts: Mapping[str, Sequence[str]], config: PreprocessConfig
) -> list[ShardTask]:
    """Cut every part into shard files, in manifest order.

    A file holds 16 MiB of pixels at the most, but no fewer than 16 images; and no more than 256, so
    that small images too are work for many processors.
    """
    columns = ["image_id", "path", "frame", "sha256", "patient", "label"]
    by_id = {row["image_id"]: row for row in manifest.table.select(columns).to_pylist()}
    rows_a_file = min(_MAX_ROWS, max(_MIN_ROWS, _TARGET_BYTES // config.size_px**2))
    tasks = []
    for part, ids in parts.items():
        files = math.ceil(len(ids) / rows_a_file)
        for index, chunk in enumerate(np.array_split(np.array(ids, object), max(files, 1))):
            if len(chunk):
                tasks.append(ShardTask(part, index, tuple(by_id[i] for i in chunk)))
    return tasks


def build_index(
    manifest: Manifest,
    split_hash: str,
    config: PreprocessConfig,
    tasks: Iterable[ShardTask],
    files: Mapping[str, ShardFile],
) -> ShardIndex:
    """Assemble the index; mean and standard deviation come from the training part alone.

    Without a part named ``train`` (cross-validation) they come from all parts.
    """
    parts: dict[str, list[ShardFile]] = {}
    counts: dict[str, NDArray[np.int64]] = {}
    for task in tasks:
        parts.setdefault(task.part, []).append(files[task.file])
        labels = [row["label"] for row in task.rows]
        found = np.bincount(labels, minlength=len(manifest.classes))
        counts[task.part] = counts.get(task.part, np.zeros_like(found)) + found
    measured = parts.get("train") or [file for group in parts.values() for file in group]
    mean, std = mean_and_std(measured, config)
    return ShardIndex(
        fingerprint=fingerprint(manifest, split_hash, config),
        manifest_hash=manifest.hash,
        split_hash=split_hash,
        classes=manifest.classes,
        preprocess=config,
        parts={part: tuple(group) for part, group in parts.items()},
        class_counts={part: tuple(int(n) for n in group) for part, group in counts.items()},
        mean=mean,
        std=std,
    )


def mean_and_std(files: Sequence[ShardFile], config: PreprocessConfig) -> tuple[float, float]:
    """Mean and standard deviation in [0, 1] of all pixels of some shard files."""
    pixels = sum(file.rows for file in files) * config.size_px**2
    return moments(
        pixels,
        sum(file.pixel_sum for file in files),
        sum(file.pixel_sum_squares for file in files),
    )


def read_part(uri: str, index: ShardIndex, part: str) -> list[pa.Table]:
    """All tables of one part, in memory.

    Raises:
        StorageError: a file is missing, damaged or has another number of rows than indexed.
    """
    tables = []
    files = index.parts.get(part, ())
    contents = storage.read_ahead(storage.join(uri, file.file) for file in files)
    for file, content in zip(files, contents, strict=True):
        try:
            table = pq.read_table(pa.BufferReader(content()))
        except (StorageError, pa.ArrowInvalid, OSError) as error:
            raise StorageError(f"{uri}/{file.file}: {error} Prepare again.") from None
        if table.num_rows != file.rows:
            raise StorageError(f"{uri}/{file.file}: {table.num_rows} rows, expected {file.rows}.")
        tables.append(table)
    return tables
