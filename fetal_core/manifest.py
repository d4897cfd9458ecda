"""The validated data set: one row an image or frame, stored as Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fetal_core import storage
from fetal_core.config import digest
from fetal_core.errors import StaleInputError, StorageError

VERSION = 1

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("patient", pa.string()),
        pa.field("plane", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("brain_plane", pa.string()),
        pa.field("operator", pa.string()),
        pa.field("machine", pa.string()),
        pa.field("official_test", pa.bool_()),
        pa.field("row", pa.int32()),
        pa.field("file_bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("pixel_hash", pa.string(), nullable=False),
        pa.field("dhash", pa.uint64(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),
    ]
)
"""Columns of a manifest; ``path`` is relative to the root, ``row`` a line of the label table."""

_WHERE_FROM = ("path", "row")


@dataclass(frozen=True)
class Manifest:
    """Images with their labels, patients and hashes.

    Attributes:
        table: columns as in :data:`SCHEMA`, sorted by ``image_id``.
        classes: names of the classes; ``label`` is an index into them.
        root: folder or URI that ``path`` is relative to.
    """

    table: pa.Table
    classes: tuple[str, ...]
    root: str

    @classmethod
    def from_rows(
        cls, rows: Sequence[Mapping[str, Any]], classes: Sequence[str], root: str
    ) -> Manifest:
        """Build from one mapping of all columns a row, in any order."""
        ordered = sorted(rows, key=lambda row: str(row["image_id"]))
        return cls(pa.Table.from_pylist(ordered, schema=SCHEMA), tuple(classes), root)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all content but the place of the files and the order of the rows."""
        content = self.table.drop_columns(list(_WHERE_FROM)).sort_by("image_id").to_pydict()
        return digest({"version": VERSION, "classes": self.classes, "rows": content})

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """``image_id`` of every row."""
        return tuple(self.table["image_id"].to_pylist())

    @cached_property
    def patients(self) -> tuple[str | None, ...]:
        """Patient of every row, None where unknown."""
        return tuple(self.table["patient"].to_pylist())

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32 ``(rows,)``: index into ``classes``."""
        return np.asarray(self.table["label"], dtype=np.int32)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def uri(self, index: int) -> str:
        """Path or URI of the file of row ``index``."""
        return storage.join(self.root, self.table["path"][index].as_py())

    def save(self, uri: str) -> None:
        """Write as Parquet, atomically.

        Raises:
            StorageError: it cannot be written.
        """
        facts = {
            "version": VERSION,
            "classes": self.classes,
            "root": self.root,
            "hash": self.hash,
        }
        table = self.table.replace_schema_metadata({"fetal_manifest": json.dumps(facts)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(uri, sink.getvalue().to_pybytes())

    @classmethod
    def load(cls, uri: str) -> Manifest:
        """Read a manifest and verify its hash.

        Raises:
            StorageError: it cannot be read or is not a manifest of this version.
            StaleInputError: its content is not what was saved.
        """
        data = storage.read_bytes(uri)
        try:
            table = pq.read_table(pa.BufferReader(data))
            facts = json.loads((table.schema.metadata or {})[b"fetal_manifest"])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise _not_a_manifest(uri, str(error)) from None
        if facts.get("version") != VERSION or table.schema.names != SCHEMA.names:
            raise _not_a_manifest(uri, f"it has version {facts.get('version')}, not {VERSION}")
        manifest = cls(table.cast(SCHEMA), tuple(facts["classes"]), facts["root"])
        if manifest.hash != facts["hash"]:
            raise StaleInputError(
                f"{uri}: the content does not have the hash that it was saved with. "
                "Make it again with `fetal prepare`."
            )
        return manifest

    def counts(self) -> dict[str, int]:
        """Number of rows of each class, in the order of the classes."""
        per_label = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, per_label.tolist(), strict=True))

    def where(self, ids: Sequence[str]) -> pa.Table:
        """The rows of these ids, in the order of ``ids``.

        Raises:
            KeyError: an id is not in the manifest.
        """
        places = pc.index_in(pa.array(ids, pa.string()), self.table["image_id"])
        if places.null_count:
            raise KeyError(ids[places.to_pylist().index(None)])
        return self.table.take(places)


def _not_a_manifest(uri: str, reason: str) -> StorageError:
    return StorageError(f"{uri}: not a manifest: {reason}. Make it again with `fetal prepare`.")
