"""Random access to the rows of a part, whose pixels stay where Arrow holds them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fetal_core.statistics import moments


class RowStore:
    """Images and labels of one part, addressed by row number in the order of the image ids.

    Nothing is copied on construction: pixels stay in the Arrow buffers (a memory map, or Ray's
    shared object store, where all workers of a machine see one copy).
    """

    def __init__(self, tables: Sequence[pa.Table], size_px: int) -> None:
        """Wrap tables with the columns of ``fetal_core.shards.SCHEMA``."""
        self.size_px = size_px
        rows: list[tuple[str, str | None, int, NDArray[np.uint8]]] = []
        for table in tables:
            columns = (table[name].to_pylist() for name in ("image_id", "patient", "label"))
            pixels = [view for chunk in table["image"].chunks for view in _views(chunk, size_px)]
            rows += zip(*columns, pixels, strict=True)
        rows.sort(key=lambda row: row[0])
        self.image_ids = [row[0] for row in rows]
        self.patients = [row[1] for row in rows]
        self.labels_N = torch.tensor([row[2] for row in rows], dtype=torch.int64)
        self._images = [row[3] for row in rows]

    def __len__(self) -> int:
        return len(self._images)

    def images(self, rows_N: Tensor | Sequence[int]) -> Tensor:
        """Pixels of some rows.

        Returns:
            uint8 tensor of shape (N, 1, size_px, size_px).
        """
        picked = [self._images[int(row)] for row in rows_N]
        if not picked:
            return torch.zeros((0, 1, self.size_px, self.size_px), dtype=torch.uint8)
        return torch.from_numpy(np.stack(picked)).unsqueeze(1)

    def ids(self, rows_N: Tensor | Sequence[int]) -> list[str]:
        """Image ids of some rows."""
        return [self.image_ids[int(row)] for row in rows_N]

    def subset(self, image_ids: Sequence[str]) -> RowStore:
        """The rows of these images; shares their pixels.

        Raises:
            KeyError: an image is not in this store.
        """
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        rows = sorted(row_of[image_id] for image_id in image_ids)
        part = RowStore([], self.size_px)
        part.image_ids = [self.image_ids[row] for row in rows]
        part.patients = [self.patients[row] for row in rows]
        part.labels_N = self.labels_N[rows]
        part._images = [self._images[row] for row in rows]
        return part

    def at_most(self, rows: int | None, seed: int) -> RowStore:
        """A random draw of ``rows`` rows; all of them if there are no more, or for None."""
        if rows is None or rows >= len(self):
            return self
        drawn = np.random.default_rng([seed, rows]).choice(len(self), rows, replace=False)
        return self.subset([self.image_ids[row] for row in drawn])

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and standard deviation in [0, 1] over all pixels."""
        pixels = total = squares = 0
        for image_HW in self._images:
            wide_HW = image_HW.astype(np.int64)
            pixels += wide_HW.size
            total += int(wide_HW.sum())
            squares += int(np.square(wide_HW).sum())
        return moments(pixels, total, squares)

    def class_counts(self, classes: int) -> list[int]:
        """Rows of each class."""
        return torch.bincount(self.labels_N, minlength=classes).tolist()


def _views(chunk: pa.Array, size_px: int) -> list[NDArray[np.uint8]]:
    """Each value of a binary array as a (size_px, size_px) view of its buffer."""
    _, offsets, data = chunk.buffers()
    if data is None:
        return []
    width = 8 if pa.types.is_large_binary(chunk.type) else 4
    starts = np.frombuffer(offsets, np.int64 if width == 8 else np.int32)
    starts = starts[chunk.offset : chunk.offset + len(chunk) + 1]
    pixels = np.frombuffer(data, np.uint8)
    return [pixels[start:end].reshape(size_px, size_px) for start, end in pairwise(starts)]
