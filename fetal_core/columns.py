"""Which column of a label table holds what, by its header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fetal_core.config import nearest
from fetal_core.errors import Problem
from fetal_core.tables import RawTable

Column = Literal["image", "patient", "plane", "brain_plane", "operator", "machine", "train"]

_HEADERS: dict[Column, str] = {
    "image": "Image_name",
    "patient": "Patient_num",
    "plane": "Plane",
    "brain_plane": "Brain_plane",
    "operator": "Operator",
    "machine": "US_Machine",
    "train": "Train",
}
_REQUIRED: tuple[Column, ...] = ("image", "plane")


def has_required(table: RawTable, mapping: Mapping[Column, str]) -> bool:
    """Whether the columns are there without which a table holds no labels."""
    headers = {header.casefold() for header in table.header}
    return all(_folded(mapping.get(column, _HEADERS[column])) in headers for column in _REQUIRED)


def find_columns(
    table: RawTable, mapping: Mapping[Column, str]
) -> tuple[dict[Column, int], list[Problem]]:
    """Place of each known column, and the headers that are missing, doubtful or not used.

    Headers are compared without regard to case and to white space around them.

    Args:
        mapping: header by column, where it is not that of FETAL_PLANES_DB.
    """
    problems: list[Problem] = []
    places: dict[Column, int] = {}
    folded = [header.casefold() for header in table.header]
    for column, default in _HEADERS.items():
        wanted = mapping.get(column, default)
        count = folded.count(_folded(wanted))
        if count == 1:
            places[column] = folded.index(_folded(wanted))
        elif count > 1:
            reason = f"the column {wanted!r} appears {count} times"
            problems.append(Problem("duplicate-column", table.name, reason, "Keep one of them", 1))
        elif column in mapping or column in _REQUIRED:
            problems.append(_unknown_column(table, column, wanted))
    unused = [head for i, head in enumerate(table.header) if i not in places.values() and head]
    if unused and not problems:
        problems.append(_unused_columns(table, unused, places))
    return places, problems


def _unknown_column(table: RawTable, column: Column, wanted: str) -> Problem:
    return Problem(
        "unknown-columns",
        table.name,
        f"no column {wanted!r} for the {column}{nearest(wanted, list(table.header))}; "
        f"the table has: {', '.join(map(repr, table.header))}",
        f"Rename the column, or set labels.columns.{column} to its header",
        1,
    )


def _unused_columns(table: RawTable, unused: list[str], places: Mapping[Column, int]) -> Problem:
    free = [header for column, header in _HEADERS.items() if column not in places]
    hints = "".join(f"; {head!r}{nearest(head, free)}" for head in unused if nearest(head, free))
    return Problem(
        "unknown-columns",
        table.name,
        f"these columns are not used: {', '.join(map(repr, unused))}{hints}",
        "Nothing to do, unless one holds the patient: then set labels.columns",
        1,
        "warning",
    )


def _folded(header: str) -> str:
    return header.strip().casefold()
