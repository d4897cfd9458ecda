"""Shards in Ray's object store, where all workers of a machine share one copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayTaskError

from fetal_core import storage
from fetal_core.arrow_files import filesystem
from fetal_core.errors import StorageError
from fetal_core.rows import RowStore
from fetal_core.shard_files import sizes
from fetal_core.shards import ShardIndex


def shard_files(uri: str, index: ShardIndex, parts: Iterable[str]) -> list[str]:
    """Files of some parts, checked to be there and whole.

    Ray Data passes over files that it cannot resolve.

    Raises:
        StorageError: files are missing or of another size than indexed; all of them.
    """
    wanted = [file for part in parts for file in index.parts.get(part, ())]
    expected = {storage.join(uri, file.file): file.bytes for file in wanted}
    there = sizes(uri)
    bad = [path for path, size in expected.items() if there.get(path) != size]
    if bad:
        raise StorageError(
            f"{len(bad)} shard files are missing or damaged: {', '.join(bad[:5])}. "
            "Run `fetal prepare` again."
        )
    return list(expected)


def load_blocks(uri: str, index: ShardIndex, parts: Sequence[str]) -> dict[str, list[Any]]:
    """Read parts with Ray Data.

    Returns:
        For each part, references to Arrow tables.

    Raises:
        StorageError: files are missing or damaged.
    """
    blocks: dict[str, list[Any]] = {}
    for part in parts:
        files = shard_files(uri, index, (part,))
        try:
            dataset = read_shards(files).materialize() if files else None
        except RayTaskError as error:
            reason = str(error.cause).rstrip(".")
            raise StorageError(
                f"{storage.join(uri, part)}: cannot be read: {reason}. Run `fetal prepare` again."
            ) from None
        rows = dataset.count() if dataset is not None else 0
        if rows != index.rows(part):
            raise StorageError(f"{uri}/{part}: {rows} rows were read, {index.rows(part)} expected")
        blocks[part] = dataset.to_arrow_refs() if dataset is not None else []
    return blocks


def read_shards(files: Sequence[str], include_paths: bool = False) -> ray.data.Dataset:
    """A dataset of the rows of shard files, at least one."""
    fs, _ = filesystem(files[0])
    paths = [filesystem(file)[1] for file in files]
    return ray.data.read_parquet(paths, filesystem=fs, include_paths=include_paths)


def row_store(refs: Sequence[Any], size_px: int) -> RowStore:
    """The rows behind references, without copying their pixels."""
    tables: list[pa.Table] = ray.get(list(refs))
    return RowStore(tables, size_px)
