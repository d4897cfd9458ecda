"""Shards: what is written is what preprocessing gives, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from builders import SIZE_PX, manifest_of, write_index
from data_samples import encode, texture, write_folder
from fetal_core.errors import DataError, StorageError
from fetal_core.images import ImageLimits, decode
from fetal_core.manifest import Manifest
from fetal_core.preprocess import PreprocessConfig, preprocess
from fetal_core.shard_files import finished, write_shard
from fetal_core.shards import (
    ShardFile,
    ShardIndex,
    ShardTask,
    fingerprint,
    mean_and_std,
    plan,
    read_part,
)
from fetal_core.split import Split, SplitConfig, make_split
from fetal_core.statistics import moments

CONFIG = PreprocessConfig(size_px=SIZE_PX)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return manifest_of(write_folder(tmp_path / "cohort", patients=8))


@pytest.fixture
def split(manifest: Manifest) -> Split:
    return make_split(manifest, SplitConfig(use_official_test=False))


def one_task(manifest: Manifest) -> ShardTask:
    return plan(manifest, {"train": manifest.ids}, CONFIG)[0]


def write(task: ShardTask, manifest: Manifest, out: Path) -> ShardFile:
    return write_shard(task, manifest.root, str(out), CONFIG, ImageLimits())


def pixels(table: pa.Table) -> np.ndarray:
    flat = [np.frombuffer(value, np.uint8) for value in table["image"].to_pylist()]
    return np.stack(flat).reshape(-1, SIZE_PX, SIZE_PX)


def test_shards_hold_exactly_the_preprocessed_images(
    manifest: Manifest, split: Split, tmp_path: Path
) -> None:
    out = str(tmp_path / "shards")
    index = ShardIndex.load(_written(manifest, split, out))
    row_of = {image_id: row for row, image_id in enumerate(manifest.ids)}
    for part, ids in split.parts.items():
        table = pa.concat_tables(read_part(out, index, part))
        assert table["image_id"].to_pylist() == list(ids)
        assert index.rows(part) == len(ids)
        rows = [row_of[image_id] for image_id in ids]
        assert table["label"].to_pylist() == [int(manifest.labels[row]) for row in rows]
        assert table["patient"].to_pylist() == [manifest.patients[row] for row in rows]
        expected = [preprocess(decode(Path(manifest.uri(r)).read_bytes()), CONFIG) for r in rows]
        np.testing.assert_array_equal(pixels(table), np.stack(expected))


def test_mean_and_std_are_those_of_the_training_pixels(
    manifest: Manifest, split: Split, tmp_path: Path
) -> None:
    out = str(tmp_path / "shards")
    index = ShardIndex.load(_written(manifest, split, out))
    train = pixels(pa.concat_tables(read_part(out, index, "train"))) / 255
    assert index.mean == pytest.approx(train.mean(), rel=1e-9)
    assert index.std == pytest.approx(train.std(), rel=1e-9)
    labels = pa.concat_tables(read_part(out, index, "train"))["label"].to_pylist()
    assert index.class_counts["train"] == tuple(np.bincount(labels, minlength=2))


def test_without_a_training_part_the_moments_are_those_of_all(
    manifest: Manifest, tmp_path: Path
) -> None:
    half = len(manifest) // 2
    parts = {"a": manifest.ids[:half], "b": manifest.ids[half:]}
    index = write_index(manifest, Split("", 0, parts), str(tmp_path), CONFIG)
    tables = [t for part in parts for t in read_part(str(tmp_path), index, part)]
    assert index.mean == pytest.approx(pixels(pa.concat_tables(tables)).mean() / 255, rel=1e-9)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=200))
def test_moments_from_sums_are_those_of_numpy(values: list[int]) -> None:
    array = np.array(values, np.int64)
    mean, std = moments(len(array), int(array.sum()), int(np.square(array).sum()))
    assert mean == pytest.approx(array.mean() / 255, abs=1e-9)
    assert std == pytest.approx(max(array.std() / 255, 1e-3), abs=1e-6)


def test_moments_of_large_cohorts_keep_their_precision() -> None:
    # 10^5 images of 661 x 661 px: half the pixels 100, half 101.
    half = 50_000 * 661**2
    mean, std = moments(2 * half, 201 * half, (100**2 + 101**2) * half)
    assert mean * 255 == pytest.approx(100.5, rel=1e-12)
    assert std * 255 == pytest.approx(0.5, rel=1e-6)


def test_all_unusable_images_are_named_and_nothing_is_written(
    manifest: Manifest, tmp_path: Path
) -> None:
    task = one_task(manifest)
    changed, truncated, missing = (Path(manifest.uri(row)) for row in (0, 3, 5))
    changed.write_bytes(encode(texture(999)))
    truncated.write_bytes(truncated.read_bytes()[:200])
    missing.unlink()
    with pytest.raises(DataError, match="3 images cannot be prepared") as caught:
        write(task, manifest, tmp_path / "shards")
    found = {problem.where: problem.kind for problem in caught.value.problems}
    assert found == {
        f"images/{changed.name}": "changed-image",
        f"images/{truncated.name}": "changed-image",
        f"images/{missing.name}": "missing-image",
    }
    assert not (tmp_path / "shards").exists()


def test_truncated_image_with_the_hash_of_the_audit_is_a_decoding_problem(
    manifest: Manifest, tmp_path: Path
) -> None:
    """Someone shortened the file before the audit noted its hash."""
    import hashlib

    task = one_task(manifest)
    file = Path(manifest.uri(2))
    file.write_bytes(file.read_bytes()[:200])
    rows = [dict(row) for row in task.rows]
    rows[2]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(DataError) as caught:
        write(ShardTask("train", 0, tuple(rows)), manifest, tmp_path / "shards")
    assert [problem.kind for problem in caught.value.problems] == ["truncated-image"]


def test_finished_recognises_a_whole_shard(manifest: Manifest, tmp_path: Path) -> None:
    task = one_task(manifest)
    assert finished([task], str(tmp_path)) == {}
    written = write(task, manifest, tmp_path)
    assert finished([task], str(tmp_path)) == {task.file: written}
    assert written.bytes == (tmp_path / task.file).stat().st_size


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.9, 0.999])
def test_finished_rejects_a_truncated_shard(
    manifest: Manifest, tmp_path: Path, keep: float
) -> None:
    task = one_task(manifest)
    write(task, manifest, tmp_path)
    file = tmp_path / task.file
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    assert finished([task], str(tmp_path)) == {}


def test_finished_rejects_other_rows_and_other_tables(manifest: Manifest, tmp_path: Path) -> None:
    task = one_task(manifest)
    write(task, manifest, tmp_path)
    fewer = ShardTask(task.part, task.index, task.rows[1:])
    assert finished([fewer], str(tmp_path)) == {}
    swapped = ShardTask(task.part, task.index, task.rows[::-1])
    assert finished([swapped], str(tmp_path)) == {}
    ids = [row["image_id"] for row in task.rows]
    pq.write_table(pa.table({"image_id": ids}), tmp_path / task.file)
    assert finished([task], str(tmp_path)) == {}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([32, 700, 1100, 2048]))
def test_plan_covers_every_row_once(train: int, val: int, size_px: int) -> None:
    manifest = Manifest.from_rows(_bare_rows(train + val), ["a"], "/data")
    parts = {"train": manifest.ids[:train], "val": manifest.ids[train:]}
    tasks = plan(manifest, parts, PreprocessConfig(size_px=size_px))
    for part, ids in parts.items():
        mine = [task for task in tasks if task.part == part]
        assert [row["image_id"] for task in mine for row in task.rows] == list(ids)
        assert [task.index for task in mine] == list(range(len(mine)))
        sizes = [len(task.rows) for task in mine]
        assert not sizes or max(sizes) - min(sizes) <= 1
    assert len({task.file for task in tasks}) == len(tasks)


def test_large_images_are_spread_over_several_files() -> None:
    manifest = Manifest.from_rows(_bare_rows(100), ["a"], "/data")
    tasks = plan(manifest, {"train": manifest.ids}, PreprocessConfig(size_px=1024))
    assert len(tasks) == 7
    assert max(len(task.rows) for task in tasks) * 1024**2 <= 16 << 20


def test_small_images_are_spread_over_several_files() -> None:
    manifest = Manifest.from_rows(_bare_rows(600), ["a"], "/data")
    tasks = plan(manifest, {"train": manifest.ids}, PreprocessConfig(size_px=64))
    assert [len(task.rows) for task in tasks] == [200, 200, 200]


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """A cohort in which the image P1_0 is a file of three frames."""
    folder = write_folder(tmp_path / "sequence", patients=8)
    frames = [Image.fromarray(texture(seed)) for seed in (500, 501, 502)]
    (folder / "images/P1_0.png").unlink()
    frames[0].save(folder / "images/P1_0.tif", save_all=True, append_images=frames[1:])
    return folder


def test_each_frame_of_a_file_is_a_row(sequence: Path, tmp_path: Path) -> None:
    manifest = manifest_of(sequence)
    task = one_task(manifest)
    write(task, manifest, tmp_path)
    table = pq.read_table(tmp_path / task.file)
    first = table["image_id"].to_pylist().index("P1_0#0000")
    expected = [preprocess(texture(seed), CONFIG) for seed in (500, 501, 502)]
    np.testing.assert_array_equal(pixels(table)[first : first + 3], np.stack(expected))


def test_a_changed_file_of_several_frames_is_one_finding(sequence: Path, tmp_path: Path) -> None:
    manifest = manifest_of(sequence)
    Image.fromarray(texture(503)).save(sequence / "images/P1_0.tif")
    with pytest.raises(DataError) as caught:
        write(one_task(manifest), manifest, tmp_path)
    (problem,) = caught.value.problems
    assert (problem.kind, problem.where) == ("changed-image", "images/P1_0.tif")


def test_damaged_or_missing_files_are_storage_errors(
    manifest: Manifest, split: Split, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    index = ShardIndex.load(_written(manifest, split, str(out)))
    file = out / index.parts["train"][0].file
    table, data = pq.read_table(file), file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(StorageError, match="Prepare again"):
        read_part(str(out), index, "train")
    pq.write_table(table.slice(1), file)
    with pytest.raises(StorageError, match="rows, expected"):
        read_part(str(out), index, "train")
    file.unlink()
    with pytest.raises(StorageError, match="Prepare again"):
        read_part(str(out), index, "train")
    assert read_part(str(out), index, "no such part") == []


def test_index_round_trip_and_foreign_ones(
    manifest: Manifest, split: Split, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    index = write_index(manifest, split, str(out), CONFIG)
    assert ShardIndex.load(str(out)) == index
    with pytest.raises(StorageError, match="fetal prepare"):
        ShardIndex.load(str(tmp_path / "nothing"))
    values = json.loads((out / "index.json").read_text())
    for foreign in ([], {}, values | {"parts": []}, values | {"more": 1}, {"preprocess": {}}):
        (out / "index.json").write_text(json.dumps(foreign))
        with pytest.raises(StorageError, match="not a shard index"):
            ShardIndex.load(str(out))


def test_fingerprint_depends_on_images_split_and_preprocessing(manifest: Manifest) -> None:
    other = Manifest(manifest.table.slice(1), manifest.classes, manifest.root)
    squash = PreprocessConfig(size_px=SIZE_PX, fit="squash")
    found = {
        fingerprint(manifest, "s", CONFIG),
        fingerprint(other, "s", CONFIG),
        fingerprint(manifest, "t", CONFIG),
        fingerprint(manifest, "s", squash),
    }
    assert len(found) == 4
    moved = Manifest(manifest.table, manifest.classes, "/elsewhere")
    assert fingerprint(moved, "s", CONFIG) == fingerprint(manifest, "s", CONFIG)


def test_moments_of_several_files_add_up(manifest: Manifest, tmp_path: Path) -> None:
    half = len(manifest) // 2
    parts = {"a": manifest.ids[:half], "b": manifest.ids[half:]}
    files = [write(task, manifest, tmp_path) for task in plan(manifest, parts, CONFIG)]
    whole = write(one_task(manifest), manifest, tmp_path)
    assert mean_and_std(files, CONFIG) == mean_and_std([whole], CONFIG)


def _written(manifest: Manifest, split: Split, out: str) -> str:
    write_index(manifest, split, out, CONFIG)
    return out


def _bare_rows(count: int) -> list[dict[str, object]]:
    fixed = {"frame": 0, "patient": "P", "plane": "a", "label": 0, "file_bytes": 1, "sha256": ""}
    size = {"pixel_hash": "", "dhash": 0, "width_px": 1, "height_px": 1, "mode": "L"}
    return [{"image_id": f"i{n:03d}", "path": f"{n}.png", **fixed, **size} for n in range(count)]
