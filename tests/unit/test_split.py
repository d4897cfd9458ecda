"""Splits and folds: no patient in two parts, classes in their shares, the same every time."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_samples import made_manifest
from fetal_core.config import parse
from fetal_core.errors import ConfigError, DataError, StaleInputError, StorageError
from fetal_core.manifest import Manifest
from fetal_core.split import PARTS, Split, SplitConfig, check_split, make_folds, make_split


def cohort(seed: int = 0, patients: int = 150, classes: int = 5) -> Manifest:
    """Patients with a few images of a few classes, as in FETAL_PLANES_DB."""
    generator = np.random.default_rng(seed)
    names, labels = [], []
    for patient in range(patients):
        for label in generator.choice(classes, size=generator.integers(1, 4), replace=False):
            count = int(generator.integers(1, 6))
            names += [f"p{patient}"] * count
            labels += [int(label)] * count
    return made_manifest(names, labels)


def patients_of(manifest: Manifest, ids: tuple[str, ...]) -> set[str | None]:
    owner = dict(zip(manifest.ids, manifest.patients, strict=True))
    return {owner[name] for name in ids}


def counts_of(manifest: Manifest, ids: tuple[str, ...]) -> np.ndarray:
    label = dict(zip(manifest.ids, manifest.labels.tolist(), strict=True))
    return np.bincount([label[name] for name in ids], minlength=len(manifest.classes))


def test_parts_share_no_patient_and_keep_the_shares() -> None:
    manifest = cohort()
    config = SplitConfig(test=0.2, val=0.15, calib=0.1)
    split = make_split(manifest, config)
    assert set(split.parts) == set(PARTS)
    assert sorted(name for ids in split.parts.values() for name in ids) == list(manifest.ids)
    owners = [patients_of(manifest, ids) for ids in split.parts.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 150
    totals = counts_of(manifest, manifest.ids)
    for part, share in {"train": 0.55, "test": 0.2, "val": 0.15, "calib": 0.1}.items():
        np.testing.assert_allclose(
            counts_of(manifest, split.parts[part]) / totals, share, atol=0.03
        )


def test_the_same_manifest_gives_the_same_split_in_any_order_of_rows() -> None:
    manifest = cohort()
    shuffled = manifest.table.take(np.random.default_rng(1).permutation(len(manifest)))
    other = dataclasses.replace(manifest, table=shuffled, root="/elsewhere")
    rebuilt = Manifest.from_rows(shuffled.to_pylist(), manifest.classes, "/elsewhere")
    split = make_split(manifest)
    assert make_split(rebuilt).hash == make_split(other).hash == split.hash
    assert make_split(manifest, SplitConfig(seed=1)).hash != split.hash


def test_a_rare_class_is_in_every_part() -> None:
    patients = [f"p{index}" for index in range(104)]
    labels = [0] * 50 + [1] * 50 + [2] * 4
    manifest = made_manifest(patients, labels)
    for seed in range(5):
        split = make_split(manifest, SplitConfig(seed=seed))
        assert all(counts_of(manifest, ids)[2] == 1 for ids in split.parts.values())


@pytest.mark.parametrize(("rare", "held"), [(1, "train"), (2, "train test"), (3, "train test val")])
def test_few_patients_go_to_training_first(rare: int, held: str) -> None:
    manifest = made_manifest([f"p{i}" for i in range(60 + rare)], [0] * 30 + [1] * 30 + [2] * rare)
    split = make_split(manifest)
    got = {part for part in PARTS if counts_of(manifest, split.parts[part])[2]}
    assert got == set(held.split())


def test_the_tables_own_test_set_is_kept() -> None:
    manifest = cohort()
    numbers = [int((name or "")[1:]) for name in manifest.patients]
    flags = [number % 3 == 0 for number in numbers]
    official = made_manifest(list(manifest.patients), manifest.labels.tolist(), flags)
    split = make_split(official, SplitConfig(val=0.2, calib=0.1))
    expected = tuple(name for name, flag in zip(official.ids, flags, strict=True) if flag)
    assert split.parts["test"] == expected
    rest = len(official) - len(expected)
    assert len(split.parts["val"]) / rest == pytest.approx(0.2, abs=0.02)
    assert len(split.parts["calib"]) / rest == pytest.approx(0.1, abs=0.02)
    own = make_split(official, SplitConfig(use_official_test=False))
    assert len(own.parts["test"]) / len(official) == pytest.approx(0.2, abs=0.02)


def test_a_patient_on_both_sides_of_the_train_column_is_refused() -> None:
    manifest = made_manifest(["a", "a", "b", "c"], [0, 0, 1, 1], [True, False, False, False])
    with pytest.raises(DataError, match="patient a is in the parts"):
        make_split(manifest)


def test_unknown_patients_need_consent() -> None:
    manifest = made_manifest(
        [None] * 40,
        [0, 1] * 20,
        pixel_hashes=["x", "y"] * 2 + list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"),
    )
    with pytest.raises(DataError, match="patients are not known"):
        make_split(manifest)
    with pytest.raises(DataError, match="patients are not known"):
        make_folds(manifest, 2)
    split = make_split(manifest, SplitConfig(by_patient=False))
    part_of = {name: part for part, ids in split.parts.items() for name in ids}
    assert part_of["img00000"] == part_of["img00002"]
    check_split(split, manifest)


def test_check_names_every_fault() -> None:
    manifest = made_manifest(["a", "a", "b", "c"], [0, 0, 1, 1], pixel_hashes=["1", "2", "3", "3"])
    parts = {"train": ("img00000",), "test": ("img00001", "img00002"), "val": ("img00002", "x")}
    split = Split(manifest.hash, 0, {**parts, "calib": ("img00003",)})
    with pytest.raises(DataError) as caught:
        check_split(split, manifest)
    assert sorted(problem.kind for problem in caught.value.problems) == [
        "duplicate-across-parts",
        "leaked-patient",
        "repeated-id",
        "unknown-id",
    ]
    gap = dataclasses.replace(split, parts={**parts, "calib": ()})
    with pytest.raises(DataError, match="img00003: it is in no part"):
        check_split(gap, manifest)
    with pytest.raises(StaleInputError, match="another manifest"):
        check_split(dataclasses.replace(split, manifest_hash="0"), manifest)


def test_survives_saving_and_shows_edits(tmp_path: Path) -> None:
    split = make_split(cohort())
    uri = tmp_path / "split.json"
    split.save(str(uri))
    assert Split.load(str(uri)) == split
    uri.write_text(uri.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StaleInputError, match="changed after it was saved"):
        Split.load(str(uri))
    for other in ("[]", "{}", '{"parts": 1}'):
        uri.write_text(other)
        with pytest.raises(StorageError, match="not a split file"):
            Split.load(str(uri))


def test_shares_must_leave_training_images() -> None:
    with pytest.raises(ConfigError, match="less than 1"):
        parse(SplitConfig, {"test": 0.5, "val": 0.3, "calib": 0.2}, "test")


def test_folds_test_every_row_once_a_repeat() -> None:
    manifest = cohort(patients=60)
    totals = counts_of(manifest, manifest.ids)
    folds = make_folds(manifest, folds=5, repeats=2, seed=3)
    assert [(fold.repeat, fold.fold) for fold in folds] == [
        (r, f) for r in range(2) for f in range(5)
    ]
    for repeat in range(2):
        tested = Counter(name for fold in folds if fold.repeat == repeat for name in fold.test_ids)
        assert tested == dict.fromkeys(manifest.ids, 1)
    for fold in folds:
        assert set(fold.train_ids) | set(fold.test_ids) == set(manifest.ids)
        assert not patients_of(manifest, fold.train_ids) & patients_of(manifest, fold.test_ids)
        np.testing.assert_allclose(counts_of(manifest, fold.test_ids) / totals, 0.2, atol=0.06)
    assert folds[0] != folds[5]
    assert folds == make_folds(manifest, folds=5, repeats=2, seed=3)
    with pytest.raises(DataError, match="61 folds of 60 patients"):
        make_folds(manifest, folds=61)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=8, max_size=60),
    seed=st.integers(0, 3),
)
def test_any_cohort_gives_a_faultless_split(rows: list[tuple[int, int]], seed: int) -> None:
    manifest = made_manifest([f"p{patient}" for patient, _ in rows], [label for _, label in rows])
    split = make_split(manifest, SplitConfig(seed=seed))
    check_split(split, manifest)
    assert split.parts["train"]
    assert set(np.flatnonzero(counts_of(manifest, split.parts["train"]))) == {
        label for _, label in rows
    }


def test_the_full_real_table_splits_in_its_shares(shared_data: Path) -> None:
    with (shared_data / "FETAL_PLANES_DB_data.csv").open() as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    planes = sorted({row["Plane"] for row in rows})
    manifest = made_manifest(
        [row["Patient_num"] for row in rows],
        [planes.index(row["Plane"]) for row in rows],
        [row["Train "].strip() == "0" for row in rows],
    )
    split = make_split(manifest)
    assert len(split.parts["test"]) == 5_271
    rest = counts_of(manifest, manifest.ids) - counts_of(manifest, split.parts["test"])
    for part, share in {"train": 0.75, "val": 0.15, "calib": 0.1}.items():
        np.testing.assert_allclose(counts_of(manifest, split.parts[part]) / rest, share, atol=0.02)
