"""The files of shards: written from images, and recognised when an earlier run has written them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fetal_core import images, storage
from fetal_core.arrow_files import filesystem
from fetal_core.errors import (
    DataError,
    ImageError,
    Problem,
    StaleInputError,
    StorageError,
    StoreAwayError,
)
from fetal_core.images import ImageLimits
from fetal_core.preprocess import PreprocessConfig, preprocess
from fetal_core.shards import SCHEMA, ShardFile, ShardTask


def write_shard(
    task: ShardTask, root: str, out: str, config: PreprocessConfig, limits: ImageLimits
) -> ShardFile:
    """Read, decode, resize and write one shard file.

    Raises:
        DataError: images that are unreadable or have changed since the audit, all of them; the
            file is then not written.
        StoreAwayError: the store has ceased to answer.
    """
    records, problems = [], []
    groups = [(path, list(rows)) for path, rows in groupby(task.rows, key=itemgetter("path"))]
    contents = storage.read_ahead(storage.join(root, path) for path, _ in groups)
    for (path, frames), content in zip(groups, contents, strict=True):
        try:
            records += _records(frames, content(), config, limits)
        except StoreAwayError:
            raise
        except (ImageError, StorageError, StaleInputError) as error:
            problems.append(_problem(path, error))
    if problems:
        raise DataError(f"{len(problems)} images cannot be prepared:", problems)
    table = pa.Table.from_pylist(records, SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", use_dictionary=False, write_statistics=False)
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(out, task.file), data)
    return _shard_file(task.file, table, len(data))


def finished(tasks: Sequence[ShardTask], out: str) -> dict[str, ShardFile]:
    """The shard files that an earlier run has completed, by name."""
    there = sizes(out)
    begun = [task for task in tasks if storage.join(out, task.file) in there]
    with ThreadPoolExecutor(storage.READ_AHEAD) as pool:
        found = pool.map(lambda task: _finished(task, out, there), begun)
        return {file.file: file for file in found if file is not None}


def sizes(out: str) -> dict[str, int]:
    """Bytes of every file in a shard folder by its path or URI; empty where there is none.

    Raises:
        StorageError: the storage cannot be reached.
    """
    if not storage.is_dir(out):
        return {}
    return {entry.uri: entry.size_bytes for entry in storage.entries(storage.absolute(out))}


def _finished(task: ShardTask, out: str, there: Mapping[str, int]) -> ShardFile | None:
    uri = storage.join(out, task.file)
    fs, path = filesystem(uri)
    columns = ["image_id", "pixel_sum", "pixel_sum_squares"]
    try:
        with pq.ParquetFile(path, filesystem=fs) as file:
            table = file.read(columns)
    except (pa.ArrowInvalid, OSError):
        return None
    if table.column_names != columns:
        return None
    if table["image_id"].to_pylist() != [row["image_id"] for row in task.rows]:
        return None
    return _shard_file(task.file, table, there[uri])


def _records(
    frames: Sequence[Mapping[str, Any]], data: bytes, config: PreprocessConfig, limits: ImageLimits
) -> list[dict[str, Any]]:
    """The shard's rows of the frames of one file."""
    if hashlib.sha256(data).hexdigest() != frames[0]["sha256"]:
        raise StaleInputError("the file has changed since the audit")
    return [
        _record(row, preprocess(images.decode(data, limits, row["frame"]), config))
        for row in frames
    ]


def _record(row: Mapping[str, Any], pixels: NDArray[np.uint8]) -> dict[str, Any]:
    wide = pixels.astype(np.int64)
    return {
        "image_id": row["image_id"],
        "patient": row["patient"],
        "label": row["label"],
        "image": pixels.tobytes(),
        "pixel_sum": int(wide.sum()),
        "pixel_sum_squares": int(np.square(wide).sum()),
    }


def _shard_file(file: str, table: pa.Table, size_bytes: int) -> ShardFile:
    sums = {key: sum(table[key].to_pylist()) for key in ("pixel_sum", "pixel_sum_squares")}
    return ShardFile(file=file, rows=table.num_rows, bytes=size_bytes, **sums)


def _problem(path: str, error: ImageError | StorageError | StaleInputError) -> Problem:
    if isinstance(error, ImageError):
        return Problem(error.kind, path, error.reason, error.remedy)
    kind = "changed-image" if isinstance(error, StaleInputError) else "missing-image"
    return Problem(kind, path, str(error), "Run `fetal prepare` again.")
