"""The manifest's hash, and its way to disk and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data_samples import made_manifest
from fetal_core.errors import StaleInputError, StorageError
from fetal_core.manifest import Manifest

MANIFEST = made_manifest(["1", "1", None], [0, 1, 0])


def changed(column: str, values: pa.Array) -> Manifest:
    place = MANIFEST.table.schema.names.index(column)
    field = MANIFEST.table.schema.field(column)
    return dataclasses.replace(MANIFEST, table=MANIFEST.table.set_column(place, field, values))


def test_survives_saving(tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.parquet")
    MANIFEST.save(uri)
    loaded = Manifest.load(uri)
    assert loaded.table.equals(MANIFEST.table)
    assert (loaded.classes, loaded.root) == (("plane 0", "plane 1"), "/data")
    assert loaded.hash == MANIFEST.hash
    assert loaded.ids == ("img00000", "img00001", "img00002")
    assert loaded.patients == ("1", "1", None)
    np.testing.assert_array_equal(loaded.labels, [0, 1, 0])
    assert loaded.counts() == {"plane 0": 2, "plane 1": 1}
    assert loaded.uri(1) == "/data/images/img00001.png"
    assert len(loaded) == 3


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("sha256", pa.array(["x", "y", "z"])),
        ("label", pa.array([1, 1, 0], pa.int32())),
        ("patient", pa.array(["1", "2", None])),
        ("official_test", pa.array([True, None, None])),
    ],
)
def test_hash_follows_the_content(column: str, values: pa.Array) -> None:
    assert changed(column, values).hash != MANIFEST.hash


def test_hash_is_blind_to_place_and_order() -> None:
    rows = MANIFEST.table.to_pylist()
    assert (
        Manifest.from_rows(rows[::-1], MANIFEST.classes, "s3://other/place").hash == MANIFEST.hash
    )
    backwards = dataclasses.replace(MANIFEST, table=MANIFEST.table.take([2, 1, 0]))
    assert backwards.hash == MANIFEST.hash
    assert changed("row", pa.array([9, 8, 7], pa.int32())).hash == MANIFEST.hash
    assert dataclasses.replace(MANIFEST, classes=("b", "a")).hash != MANIFEST.hash


def test_an_edited_file_is_stale(tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.parquet")
    MANIFEST.save(uri)
    table = pa.parquet.read_table(uri)
    swapped = pc.replace_with_mask(
        table["label"], pa.array([True, False, False]), pa.array([1], pa.int32())
    )
    place = table.schema.names.index("label")
    pa.parquet.write_table(table.set_column(place, table.schema.field("label"), swapped), uri)
    with pytest.raises(StaleInputError, match="hash"):
        Manifest.load(uri)


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    other.write_bytes(b"not parquet")
    with pytest.raises(StorageError, match="not a manifest"):
        Manifest.load(str(other))
    pa.parquet.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(StorageError, match="not a manifest"):
        Manifest.load(str(other))
    with pytest.raises(StorageError, match="no such file"):
        Manifest.load(str(tmp_path / "none.parquet"))


def test_rows_by_id() -> None:
    assert MANIFEST.where(["img00002", "img00000"])["row"].to_pylist() == [4, 2]
    with pytest.raises(KeyError, match="nobody"):
        MANIFEST.where(["img00000", "nobody"])
