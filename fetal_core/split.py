"""Train, validation, calibration and test parts that share no patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fetal_core import storage
from fetal_core.allocate import allocate
from fetal_core.config import Config, digest
from fetal_core.errors import DataError, Problem, StaleInputError, StorageError
from fetal_core.manifest import Manifest

PARTS = ("train", "test", "val", "calib")
"""In the order in which they are given a patient of a class that has few."""

VERSION = 1
Fraction = Annotated[float, Field(ge=0, lt=1)]


class SplitConfig(Config):
    """How the images are divided.

    Attributes:
        test: share of the images for the final test; not used where the table names the test set.
        val: share for choosing the best epoch.
        calib: share for temperature and thresholds. With a test set named by the table, ``val``
            and ``calib`` are shares of the other images.
        use_official_test: whether the table's train/test column decides the test part.
        by_patient: False lets images of one patient fall into several parts; those with equal
            pixels still stay together.
    """

    test: Fraction = 0.2
    val: Fraction = 0.15
    calib: Fraction = 0.1
    use_official_test: bool = True
    by_patient: bool = True
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _leaves_training(self) -> SplitConfig:
        if self.test + self.val + self.calib >= 1:
            raise ValueError("test + val + calib must be less than 1, to leave images to train on")
        return self


@dataclass(frozen=True)
class Split:
    """Sorted image ids of each part, for one manifest.

    Attributes:
        by_patient: whether no patient may be in two parts.
    """

    manifest_hash: str
    seed: int
    parts: Mapping[str, tuple[str, ...]]
    by_patient: bool = True

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the content."""
        return digest(self._content())

    def save(self, uri: str) -> None:
        """Write as JSON, atomically."""
        storage.write_json(uri, {**self._content(), "hash": self.hash})

    @classmethod
    def load(cls, uri: str) -> Split:
        """Read a split.

        Raises:
            StorageError: it cannot be read or is not a split.
            StaleInputError: its content is not what was saved.
        """
        value = storage.read_json(uri)
        try:
            parts = {str(name): tuple(map(str, ids)) for name, ids in value["parts"].items()}
            seed, by_patient = int(value["seed"]), bool(value["by_patient"])
            split = cls(str(value["manifest_hash"]), seed, parts, by_patient)
            known = value["version"] == VERSION and set(parts) == set(PARTS)
        except (KeyError, TypeError, ValueError, AttributeError):
            known = False
        if not known:
            raise StorageError(f"{uri}: not a split file of version {VERSION}. Make it again.")
        if split.hash != value.get("hash"):
            raise StaleInputError(
                f"{uri}: the split was changed after it was saved. Make it again."
            )
        return split

    def _content(self) -> dict[str, object]:
        parts = {name: list(ids) for name, ids in self.parts.items()}
        return {
            "version": VERSION,
            "manifest_hash": self.manifest_hash,
            "seed": self.seed,
            "by_patient": self.by_patient,
            "parts": parts,
        }


@dataclass(frozen=True)
class Fold:
    """One training and test set of a repeated cross-validation."""

    repeat: int
    fold: int
    train_ids: tuple[str, ...]
    test_ids: tuple[str, ...]


def make_split(manifest: Manifest, config: SplitConfig | None = None) -> Split:
    """Divide by patient, with each class in about the same share in every part.

    The same manifest hash and configuration give the same split. A class with too few patients for
    all parts goes to train, then test, then val, then calib.

    Raises:
        DataError: patients are unknown and ``by_patient`` is set, or the table's own test column
            or a lack of patients makes a faultless split impossible.
    """
    config = config or SplitConfig()
    groups = _groups(manifest, config.by_patient)
    official = _official_test(manifest) if config.use_official_test else None
    shares = {"train": 1.0, "test": config.test, "val": config.val, "calib": config.calib}
    if official is not None:
        shares["test"] = 0.0
    shares["train"] = 1 - sum(shares[name] for name in PARTS[1:])
    free = np.ones(len(manifest), bool) if official is None else ~official
    generator = _generator(manifest, config.digest())
    chosen = np.full(len(manifest), PARTS.index("test"))
    chosen[free] = allocate(
        groups[free], manifest.labels[free], [shares[name] for name in PARTS], generator
    )
    ids = np.array(manifest.ids, dtype=object)
    parts = {name: tuple(sorted(ids[chosen == index])) for index, name in enumerate(PARTS)}
    split = Split(manifest.hash, config.seed, parts, config.by_patient)
    check_split(split, manifest)
    return split


def make_folds(
    manifest: Manifest, folds: int, repeats: int = 1, seed: int = 0, by_patient: bool = True
) -> list[Fold]:
    """Repeated cross-validation: each row is in one test set a repeat; no patient is torn apart.

    Raises:
        DataError: patients are unknown and ``by_patient`` is set, or fewer than the folds.
    """
    groups = _groups(manifest, by_patient)
    if not 2 <= folds <= len(set(groups.tolist())):
        reason = f"{folds} folds of {len(set(groups.tolist()))} patients cannot be made"
        remedy = "Use 2 folds or more, and no more than there are patients"
        raise DataError("No folds.", [Problem("too-few-patients", manifest.root, reason, remedy)])
    ids = np.array(manifest.ids, dtype=object)
    made = []
    for repeat in range(repeats):
        generator = _generator(manifest, f"{seed}/{repeat}/{folds}/{by_patient}")
        chosen = allocate(groups, manifest.labels, [1 / folds] * folds, generator)
        for fold in range(folds):
            inside = chosen == fold
            made.append(Fold(repeat, fold, tuple(sorted(ids[~inside])), tuple(sorted(ids[inside]))))
    return made


def check_split(split: Split, manifest: Manifest) -> None:
    """Refuse a split that does not fit the manifest or lets a patient into two parts.

    Raises:
        StaleInputError: it was made for another manifest.
        DataError: all overlaps of patients or of equal images, unknown, repeated and missing ids.
    """
    if split.manifest_hash != manifest.hash:
        raise StaleInputError(
            f"The split was made for another manifest ({split.manifest_hash[:12]}, now "
            f"{manifest.hash[:12]}). Make the split again."
        )
    problems = _check_ids(split, manifest)
    part_of = {name: part for part, ids in split.parts.items() for name in ids}
    if split.by_patient:
        problems += _check_overlap(manifest, part_of, "patient", "leaked-patient")
    problems += _check_overlap(manifest, part_of, "pixel_hash", "duplicate-across-parts")
    if not split.parts["train"]:
        reason, remedy = "no image is left to train on", "Use smaller shares or more patients"
        problems.append(Problem("empty-part", "train", reason, remedy))
    if problems:
        raise DataError("The split cannot be used.", problems)


def _check_ids(split: Split, manifest: Manifest) -> list[Problem]:
    remedy = "Make the split again"
    counts = Counter(name for ids in split.parts.values() for name in ids)
    known = set(manifest.ids)
    problems = [
        Problem("unknown-id", name, "the manifest has no such image", remedy)
        for name in counts
        if name not in known
    ]
    problems += [
        Problem("repeated-id", name, f"it is in the split {count} times", remedy)
        for name, count in counts.items()
        if count > 1
    ]
    problems += [
        Problem("missing-id", name, "it is in no part of the split", remedy)
        for name in manifest.ids
        if name not in counts
    ]
    return problems


def _check_overlap(
    manifest: Manifest, part_of: Mapping[str, str], column: str, kind: str
) -> list[Problem]:
    members: dict[str, list[str]] = defaultdict(list)
    for name, value in zip(manifest.ids, manifest.table[column].to_pylist(), strict=True):
        if value is not None and name in part_of:
            members[value].append(name)
    problems = []
    for value, names in members.items():
        parts = sorted({part_of[name] for name in names})
        if len(parts) > 1:
            what = f"patient {value}" if column == "patient" else "the same image"
            reason = f"{what} is in the parts {' and '.join(parts)}"
            remedy = "Make the split again, or correct the table's train column"
            problems.append(Problem(kind, ", ".join(names[:5]), reason, remedy))
    return problems


def _groups(manifest: Manifest, by_patient: bool) -> npt.NDArray[np.intp]:
    """Number of each row's group, all of which goes into one part.

    A group is a patient or, where patients do not count, the images with equal pixels. Equal images
    of two patients are refused by the audit and by :func:`check_split`.
    """
    if by_patient and None in manifest.patients:
        reason = "the patients are not known, so that one may be in training and in testing"
        remedy = "Set labels.columns.patient or labels.patient_regex, or split.by_patient = false"
        raise DataError("No split.", [Problem("no-patients", manifest.root, reason, remedy)])
    keys = manifest.patients if by_patient else manifest.table["pixel_hash"].to_pylist()
    return np.unique(np.array(keys, dtype=str), return_inverse=True)[1]


def _official_test(manifest: Manifest) -> npt.NDArray[np.bool_] | None:
    """Rows of the table's own test set, or None if it names none, or nothing but it."""
    flags = np.array([bool(flag) for flag in manifest.table["official_test"].to_pylist()])
    return flags if flags.any() and not flags.all() else None


def _generator(manifest: Manifest, key: str) -> np.random.Generator:
    return np.random.default_rng(int(digest([manifest.hash, key]), 16))
