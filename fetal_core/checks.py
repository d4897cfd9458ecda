"""What a label table must hold before a model can be trained and judged on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from fetal_core.errors import Problem
from fetal_core.labels import LabelRow, Target


def check_rows(
    rows: Sequence[LabelRow],
    target: Target,
    where: str,
    allow_no_patients: bool,
    use_official_test: bool,
) -> list[Problem]:
    """Findings about classes and patients of the rows that are to be used."""
    if not rows:
        return []
    problems = _check_patients(rows, where, allow_no_patients)
    problems += _check_brain_planes(rows, target, where)
    if use_official_test:
        problems += _check_official_split(rows, where)
    return problems + _check_classes(rows, target, where)


def _check_patients(rows: Sequence[LabelRow], where: str, allow_no_patients: bool) -> list[Problem]:
    if any(row.patient is not None for row in rows):
        return []
    return [
        Problem(
            "no-patients",
            where,
            "no column or pattern says which patient an image is of, so that images of one patient "
            "may end up in training and in testing",
            "Set labels.columns.patient or labels.patient_regex, or allow it with "
            "split.by_patient = false (--split.no-by-patient)",
            severity="warning" if allow_no_patients else "error",
        )
    ]


def _check_brain_planes(rows: Sequence[LabelRow], target: Target, where: str) -> list[Problem]:
    if target == "plane" or any(row.brain_plane is not None for row in rows):
        return []
    reason = "labels.target asks for brain sub-planes and no row has one"
    return [Problem("no-brain-planes", where, reason, "Set labels.columns.brain_plane")]


def _check_official_split(rows: Sequence[LabelRow], where: str) -> list[Problem]:
    """A patient on both sides of the table's own train/test column."""
    sides: dict[str, dict[bool, LabelRow]] = defaultdict(dict)
    for row in rows:
        if row.patient is not None and row.official_test is not None:
            sides[row.patient].setdefault(row.official_test, row)
    return [
        Problem(
            "leaked-patient",
            where,
            f"patient {patient} is in training (row {side[False].row}) and in testing "
            f"(row {side[True].row}) by the train column",
            "Put all images of a patient on one side, or leave the column unused with "
            "split.use_official_test = false (--split.no-use-official-test)",
            max(side[False].row or 0, side[True].row or 0),
        )
        for patient, side in sides.items()
        if len(side) == 2
    ]


def _check_classes(rows: Sequence[LabelRow], target: Target, where: str) -> list[Problem]:
    images = Counter(row.class_name(target) for row in rows)
    if len(images) == 1:
        return [
            Problem(
                "single-class",
                where,
                f"all {len(rows)} rows have the one class {next(iter(images))!r}; the labels were "
                "probably joined by the wrong index or taken from the wrong column",
                "Check how the table was made, and the headers in labels.columns",
            )
        ]
    patients: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.patient is not None:
            patients[row.class_name(target)].add(row.patient)
    known = bool(patients)
    return [
        Problem(
            "rare-class",
            where,
            f"the class {name!r} has one {'patient' if known else 'image'} only, so it cannot be "
            "both learnt and tested",
            "Add images of other patients, or leave it out by labels.classes",
            severity="error" if known else "warning",
        )
        for name, count in sorted(images.items())
        if (len(patients[name]) if known else count) < 2
    ]
