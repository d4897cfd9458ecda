"""Rows of a part: right pixels under the right ids, however the tables are cut."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import SIZE_PX, shard_table, toy_images, toy_store
from fetal_core.rows import RowStore

LABELS = np.arange(10) % 4
IDS = [f"i{row:03d}" for row in range(10)]
IMAGES = toy_images(LABELS, seed=3)
TABLE = shard_table(IDS, LABELS, IMAGES)


def expect_rows(store: RowStore, rows: list[int]) -> None:
    """``store`` holds exactly these rows of the table above, in this order."""
    assert len(store) == len(rows)
    assert store.image_ids == [IDS[row] for row in rows]
    assert store.patients == [f"P{row // 2}" for row in rows]
    assert store.labels_N.tolist() == LABELS[rows].tolist()
    images = store.images(range(len(rows)))
    assert images.shape == (len(rows), 1, SIZE_PX, SIZE_PX)
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images[:, 0].numpy(), IMAGES[rows])


def test_rows_are_sorted_by_id_whatever_the_order_of_the_tables() -> None:
    shuffled = TABLE.take([7, 2, 9, 0, 4, 1, 3, 8, 6, 5])
    store = RowStore([shuffled.slice(6), shuffled.slice(0, 6)], SIZE_PX)
    expect_rows(store, list(range(10)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10), st.integers(0, 10))
def test_views_of_a_slice_start_at_its_offset(start: int, length: int) -> None:
    rows = list(range(10))[start : start + length]
    expect_rows(RowStore([TABLE.slice(start, length)], SIZE_PX), rows)


def test_slice_of_a_slice_and_chunked_columns() -> None:
    chunked = pa.concat_tables([TABLE.slice(0, 3), TABLE.slice(3, 4), TABLE.slice(7)])
    expect_rows(RowStore([chunked], SIZE_PX), list(range(10)))
    expect_rows(RowStore([chunked.slice(2, 6).slice(1, 3)], SIZE_PX), [3, 4, 5])


def test_large_binary_columns_are_read_alike() -> None:
    position = TABLE.schema.get_field_index("image")
    large = TABLE.set_column(position, "image", TABLE["image"].cast(pa.large_binary()))
    expect_rows(RowStore([large.slice(4)], SIZE_PX), [4, 5, 6, 7, 8, 9])


def test_pixels_are_not_copied_on_construction() -> None:
    labels_N = np.zeros(64, np.int64)
    table = shard_table([f"i{n:03d}" for n in range(64)], labels_N, toy_images(labels_N, 0, 128))
    tracemalloc.start()
    store = RowStore([table], 128)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store) == 64
    assert peak_bytes < 64 * 128 * 128 / 4


def test_changing_a_batch_does_not_change_the_store() -> None:
    store = RowStore([TABLE], SIZE_PX)
    store.images([0]).zero_()
    np.testing.assert_array_equal(store.images([0])[0, 0].numpy(), IMAGES[0])


def test_batches_follow_the_rows_asked_for() -> None:
    store = RowStore([TABLE], SIZE_PX)
    rows_N = torch.tensor([5, 0, 5])
    np.testing.assert_array_equal(store.images(rows_N)[:, 0].numpy(), IMAGES[[5, 0, 5]])
    assert store.ids(rows_N) == ["i005", "i000", "i005"]


def test_subset_keeps_the_rows_of_its_ids_in_order() -> None:
    store = RowStore([TABLE], SIZE_PX)
    expect_rows(store.subset(["i008", "i001", "i004"]), [1, 4, 8])
    expect_rows(store.subset([]), [])
    with pytest.raises(KeyError, match="stranger"):
        store.subset(["i001", "stranger"])


def test_empty_store() -> None:
    for tables in ([], [TABLE.slice(0, 0)], [TABLE.schema.empty_table()]):
        expect_rows(RowStore(tables, SIZE_PX), [])


def test_moments_and_counts_of_a_subset_are_its_own() -> None:
    store = toy_store(9).subset([f"i{row:03d}" for row in (0, 1, 4, 8)])
    pixels = store.images(range(4)).numpy() / 255
    mean, std = store.mean_and_std()
    assert mean == pytest.approx(pixels.mean(), rel=1e-9)
    assert std == pytest.approx(pixels.std(), rel=1e-9)
    assert store.class_counts(5) == [3, 1, 0, 0, 0]
