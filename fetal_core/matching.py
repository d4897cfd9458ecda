"""Joining rows of a label table to image files, by name and never by position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fetal_core.config import nearest
from fetal_core.errors import Problem
from fetal_core.files import ImageFile
from fetal_core.labels import LabelRow, LabelsConfig, Target, strip_suffix

FRAME_MARK = "#"
_Matches = list[tuple[LabelRow, ImageFile]]


def select_rows(
    rows: Sequence[LabelRow], config: LabelsConfig
) -> tuple[list[LabelRow], list[Problem]]:
    """Each image once, without those that the configuration leaves out."""
    excluded = {strip_suffix(name) for name in config.exclude}
    kept, problems = _once([row for row in rows if row.image not in excluded], config.target)
    names = {row.image for row in rows}
    for name in sorted(excluded):
        if name.rpartition(FRAME_MARK)[0] not in names and name not in names:
            reason = f"labels.exclude names no image of the table{nearest(name, sorted(names))}"
            remedy = "Correct the name, or take it out of labels.exclude"
            problems.append(Problem("unknown-exclude", name, reason, remedy, severity="warning"))
    if config.classes is None:
        return kept, problems
    found = {row.class_name(config.target) for row in kept}
    for name in config.classes:
        if name not in found:
            reason = f"no row has this class{nearest(name, sorted(found))}"
            remedy = f"Write labels.classes with names among: {', '.join(sorted(found))}"
            problems.append(Problem("unknown-class", name, reason, remedy))
    return [row for row in kept if row.class_name(config.target) in config.classes], problems


def match_files(
    rows: Sequence[LabelRow], files: Iterable[ImageFile]
) -> tuple[_Matches, list[Problem]]:
    """The file of each row; the name alone decides, or the name with its folders if it has any."""
    by_stem, by_path = _index(files)
    matches: _Matches = []
    problems = []
    for row in rows:
        index = by_path if "/" in row.image else by_stem
        candidates = index.get(row.image, [])
        if len(candidates) == 1:
            matches.append((row, candidates[0]))
        else:
            problems.append(_not_one(row, candidates))
    return matches, problems


def unlabelled(rows: Iterable[LabelRow], files: Sequence[ImageFile]) -> list[Problem]:
    """A warning for each image file that no row of the whole table names."""
    by_stem, by_path = _index(files)
    named: set[str] = set()
    for row in rows:
        index = by_path if "/" in row.image else by_stem
        named.update(file.path for file in index.get(row.image, []))
    return [
        Problem(
            "image-without-row",
            file.path,
            "no row of the label table names this image",
            "Add a row, or ignore this if the image is not meant to be used",
            severity="warning",
        )
        for file in files
        if file.has_image_suffix and file.path not in named
    ]


def _index(
    files: Iterable[ImageFile],
) -> tuple[dict[str, list[ImageFile]], dict[str, list[ImageFile]]]:
    by_stem: dict[str, list[ImageFile]] = defaultdict(list)
    by_path: dict[str, list[ImageFile]] = defaultdict(list)
    for file in files:
        by_stem[strip_suffix(file.name).rpartition("/")[2]].append(file)
        for path in {strip_suffix(file.name), strip_suffix(file.path)}:
            by_path[path].append(file)
    return by_stem, by_path


def _not_one(row: LabelRow, candidates: Sequence[ImageFile]) -> Problem:
    if not candidates:
        reason = "the table names this image and there is no such file"
        remedy = "Add the file, or drop the row; names are compared with upper and lower case"
        return Problem("missing-image", row.image, reason, remedy, row.row)
    paths = ", ".join(file.path for file in candidates)
    return Problem(
        "ambiguous-name",
        row.image,
        f"several files have this name: {paths}",
        "Write the name with its folder in the table, or rename or remove the others",
        row.row,
    )


def _once(rows: Sequence[LabelRow], target: Target) -> tuple[list[LabelRow], list[Problem]]:
    """The first row of each name, and a finding for each further one."""
    first: dict[str, LabelRow] = {}
    problems = []
    for row in rows:
        earlier = first.setdefault(row.image, row)
        if earlier is row:
            continue
        if replace(row, row=earlier.row) == earlier:
            reason = f"row {earlier.row} already says the same"
            problem = Problem(
                "repeated-row", row.image, reason, "Drop one", row.row, severity="warning"
            )
        else:
            problem = Problem(
                "conflicting-rows",
                row.image,
                f"{_differences(row, earlier, target)}, other than in row {earlier.row}",
                "Decide which row is right and drop the other",
                row.row,
            )
        problems.append(problem)
    return list(first.values()), problems


def _differences(row: LabelRow, earlier: LabelRow, target: Target) -> str:
    if row.class_name(target) != earlier.class_name(target):
        return f"labelled {row.class_name(target)!r}, not {earlier.class_name(target)!r}"
    fields = ("patient", "plane", "brain_plane", "operator", "machine", "official_test")
    changed = [name for name in fields if getattr(row, name) != getattr(earlier, name)]
    return "another " + " and ".join(changed)
