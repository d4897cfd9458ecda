"""Label tables as rows: FETAL_PLANES_DB's, two columns, any CSV by mapping, or class folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator

from fetal_core import storage
from fetal_core.columns import Column, find_columns, has_required
from fetal_core.config import Config
from fetal_core.errors import Problem
from fetal_core.files import ImageFile, list_images
from fetal_core.images import SUFFIXES
from fetal_core.tables import parse_table

Target = Literal["plane", "plane_and_brain"]

_TABLE_NAMES = ("labels.csv", "FETAL_PLANES_DB_data.csv", "image_label.csv")
_NOT_BRAIN = "Not A Brain"
_TRAIN = {"1": True, "true": True, "train": True, "0": False, "false": False, "test": False}


class LabelsConfig(Config):
    """Where the labels are and how they become classes.

    Attributes:
        table: table's path, relative to the data folder; None looks for one there.
        columns: column's header by what it holds, where it differs from FETAL_PLANES_DB's.
        patient_regex: finds the patient in an image's name, as its first group or as a whole.
        classes: the classes to keep, in this order; None keeps all, sorted.
        target: ``plane_and_brain`` makes a class of each brain sub-plane.
        exclude: names of images, or of frames (``name#0003``), to leave out.
    """

    table: str | None = None
    columns: dict[Column, str] = Field(default_factory=dict)
    patient_regex: str | None = None
    classes: tuple[str, ...] | None = None
    target: Target = "plane"
    exclude: tuple[str, ...] = ()

    @field_validator("patient_regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            pattern = re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if pattern.groups > 1:
            raise ValueError("use at most one group; write (?:...) for the others")
        return value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        repeated = [name for name, count in Counter(value or ()).items() if count > 1]
        if repeated:
            raise ValueError(f"named more than once: {', '.join(map(repr, repeated))}")
        return value


@dataclass(frozen=True)
class LabelRow:
    """One line of a label table.

    Attributes:
        image: name without the extension of an image file; may hold folders.
        row: 1-based line of the table, header included; None where folders are the labels.
        official_test: the table's own train/test column, True for test; None without one.
    """

    image: str
    row: int | None
    patient: str | None
    plane: str
    brain_plane: str | None = None
    operator: str | None = None
    machine: str | None = None
    official_test: bool | None = None

    def class_name(self, target: Target) -> str:
        """The class that a model learns for this row."""
        if target == "plane" or self.brain_plane in (None, _NOT_BRAIN):
            return self.plane
        return f"{self.plane}: {self.brain_plane}"


def read_labels(
    data_uri: str, config: LabelsConfig, files: Iterable[ImageFile] | None = None
) -> tuple[list[LabelRow], list[Problem]]:
    """Rows of a data folder's label table, and all that is wrong with them.

    Rows with an error are left out. ``files`` spares a second listing of the folder.

    Raises:
        StorageError: the folder or the named table cannot be read.
    """
    tables = list_tables(data_uri, config)
    if config.table is not None:
        return read_table(tables[0], config)
    for name in _TABLE_NAMES:
        for uri in tables:
            if storage.name(uri) == name:
                return read_table(uri, config)
    recognised = [uri for uri in tables if _is_label_table(uri, config)]
    if len(recognised) == 1:
        return read_table(recognised[0], config)
    if recognised:
        return [], [_many_tables(data_uri, recognised)]
    rows, problems = _rows_by_folder(list_images(data_uri) if files is None else files, config)
    if not rows and not problems:
        return _nothing_found(data_uri, tables, config)
    return rows, [*problems, *(_not_used(uri) for uri in tables)]


def list_tables(data_uri: str, config: LabelsConfig) -> list[str]:
    """The files that decide a data folder's labels: the named table, or all that may be one.

    Raises:
        StorageError: the folder cannot be listed.
    """
    if config.table is not None:
        is_whole = storage.is_remote(config.table) or config.table.startswith("/")
        return [config.table if is_whole else storage.join(data_uri, config.table)]
    listed = storage.list_files(data_uri, recursive=False)
    return [uri for uri in listed if uri.lower().endswith(".csv")]


def read_table(uri: str, config: LabelsConfig) -> tuple[list[LabelRow], list[Problem]]:
    """Rows of one table, and all that is wrong with it.

    Raises:
        StorageError: it cannot be read.
    """
    table, problems = parse_table(storage.read_bytes(uri), storage.name(uri))
    if table is None:
        return [], problems
    places, column_problems = find_columns(table, config.columns)
    problems += column_problems
    if any(problem.severity == "error" for problem in column_problems):
        return [], problems
    rows = []
    for line, cells in table.rows:
        values = {column: cells[place] for column, place in places.items()}
        row, row_problems = _row(values, line, table.name, config)
        problems += row_problems
        if row is not None:
            rows.append(row)
    return rows, problems


def strip_suffix(name: str) -> str:
    """``name`` without the extension of an image file, with ``/`` between folders."""
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _row(
    values: Mapping[Column, str], line: int, table: str, config: LabelsConfig
) -> tuple[LabelRow | None, list[Problem]]:
    problems = []
    for column in ("image", "plane", "patient", "train"):
        spared = column == "patient" and config.patient_regex is not None
        if not spared and column in values and not values[column]:
            reason = f"the {column} cell is empty"
            problems.append(
                Problem("missing-cell", table, reason, "Fill it, or drop the row", line)
            )
    train = values.get("train")
    if train and train.lower() not in _TRAIN:
        reason = f"{train!r} in the train column is neither 1 (train) nor 0 (test)"
        problems.append(Problem("bad-train-value", table, reason, "Write 1 or 0", line))
    if problems:
        return None, problems
    image = strip_suffix(values["image"])
    patient = values.get("patient")
    if config.patient_regex is not None:
        patient = _match_patient(config.patient_regex, image)
        if patient is None:
            return None, [_no_match(config.patient_regex, image, line)]
    row = LabelRow(
        image=image,
        row=line,
        patient=patient,
        plane=values["plane"],
        brain_plane=values.get("brain_plane") or None,
        operator=values.get("operator") or None,
        machine=values.get("machine") or None,
        official_test=not _TRAIN[train.lower()] if train else None,
    )
    return row, []


def _match_patient(pattern: str, name: str) -> str | None:
    match = re.search(pattern, name)
    if match is None:
        return None
    return match.group(match.lastindex or 0) or None


def _no_match(pattern: str, image: str, line: int | None) -> Problem:
    return Problem(
        "no-patient-match",
        image,
        f"patient_regex {pattern!r} finds no patient in this name",
        "Change patient_regex so that it fits all names, or exclude the image",
        line,
    )


def _is_label_table(uri: str, config: LabelsConfig) -> bool:
    table, _ = parse_table(storage.read_bytes(uri), storage.name(uri))
    return table is not None and has_required(table, config.columns)


def _many_tables(data_uri: str, tables: list[str]) -> Problem:
    names = ", ".join(storage.name(uri) for uri in tables)
    reason = f"several label tables: {names}"
    return Problem("many-tables", data_uri, reason, "Name one of them in labels.table")


def _nothing_found(
    data_uri: str, tables: list[str], config: LabelsConfig
) -> tuple[list[LabelRow], list[Problem]]:
    if len(tables) == 1:
        return read_table(tables[0], config)
    names = f"; not recognised: {', '.join(map(storage.name, tables))}" if tables else ""
    return [], [
        Problem(
            "no-labels",
            data_uri,
            f"neither a label table nor folders of images named by class{names}",
            "Add labels.csv with the columns Image_name,Patient_num,Plane, or set labels.table",
        )
    ]


def _not_used(uri: str) -> Problem:
    """Classes come from the folders although there is a table: worth a look, or worse."""
    _, problems = parse_table(storage.read_bytes(uri), storage.name(uri))
    if problems:
        return problems[0]
    return Problem(
        "table-not-used",
        storage.name(uri),
        "its header is not one of a label table; the names of the folders are the classes",
        "Nothing to do if that is meant; else set labels.table and labels.columns",
        severity="warning",
    )


def _rows_by_folder(
    files: Iterable[ImageFile], config: LabelsConfig
) -> tuple[list[LabelRow], list[Problem]]:
    """One row a file; its class is the first folder below the folder of images."""
    rows, problems = [], []
    for file in files:
        folder, _, below = file.name.partition("/")
        if not below or not (file.has_image_suffix or "." not in storage.name(file.name)):
            continue
        image, patient = strip_suffix(file.name), None
        if config.patient_regex is not None:
            patient = _match_patient(config.patient_regex, strip_suffix(below))
            if patient is None:
                problems.append(_no_match(config.patient_regex, image, None))
                continue
        rows.append(LabelRow(image=image, row=None, patient=patient, plane=folder))
    return rows, problems
