"""The label table in the database's own format: read one to imitate, write the cohort's."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

from fetal_core import storage
from fetal_core.errors import DataError, Problem, StorageError
from fetal_core.phantom.cohort import PhantomConfig, Row, draw_rows

COLUMNS = (
    "Image_name",
    "Patient_num",
    "Plane",
    "Brain_plane",
    "Operator",
    "US_Machine",
    "Train ",
)
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def make_cohort(config: PhantomConfig) -> list[Row]:
    """Return the rows of a cohort: drawn from the seed, or those of the table ``config.like``.

    Raises:
        DataError: the table is missing, empty, lacks columns or has bad rows (all are listed).
    """
    return draw_rows(config) if config.like is None else read_table(config.like)


def table_bytes(rows: Iterable[Row]) -> bytes:
    """Return the label table of the rows in the database's own format: UTF-8, `;`, LF."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";", lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        train = "1 " if row.train else "0 "
        writer.writerow(
            (
                row.image_name,
                row.patient,
                row.plane,
                row.brain_plane,
                row.operator,
                row.machine,
                train,
            )
        )
    return text.getvalue().encode()


def read_table(path: str) -> list[Row]:
    """Read a label table (UTF-8 with or without BOM, LF or CRLF) in its own order.

    Raises:
        DataError: the table is missing, empty, lacks columns or has bad rows (all are listed).
    """
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except StorageError as error:
        raise _refusal(path, "missing-table", str(error)) from None
    except UnicodeDecodeError as error:
        raise _refusal(path, "bad-encoding", f"is not UTF-8 (byte {error.start})") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";")
    header = [name.strip() for name in next(reader, [])]
    missing = [name.strip() for name in COLUMNS if name.strip() not in header]
    if missing:
        raise _refusal(path, "missing-column", f"lacks the columns {', '.join(missing)}")
    order = [header.index(name.strip()) for name in COLUMNS]
    rows: list[Row] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        row = _parse(cells, order, seen)
        if isinstance(row, Row):
            seen.add(row.image_name)
            rows.append(row)
        else:
            remedy = "Correct or remove the row."
            problems.append(Problem("bad-row", path, row, remedy, reader.line_num))
    if problems:
        raise DataError(f"{path}: {len(problems)} rows cannot be imitated.", problems)
    if not rows:
        raise _refusal(path, "empty-table", "has no rows")
    return rows


def _parse(cells: list[str], order: list[int], seen: set[str]) -> Row | str:
    """Return the row of a line, or what is wrong with it."""
    if len(cells) <= max(order):
        return f"has {len(cells)} of {max(order) + 1} cells"
    name, patient, plane, brain_plane, operator, machine, train = (
        cells[index].strip() for index in order
    )
    if not _SAFE_NAME.fullmatch(name):
        return f"image name {name!r} is not a plain file name"
    if name in seen:
        return f"image name {name!r} occurs twice"
    if not (patient.isascii() and patient.isdigit()):
        return f"patient {patient!r} is not a number"
    if train not in ("0", "1"):
        return f"train flag {train!r} is neither 0 nor 1"
    if not plane:
        return "plane is empty"
    return Row(name, int(patient), plane, brain_plane, operator, machine, train == "1")


def _refusal(path: str, kind: str, reason: str) -> DataError:
    remedy = f"Give a `;`-separated table with the columns {', '.join(COLUMNS).strip()}."
    return DataError(f"Cannot imitate {path}.", [Problem(kind, path, reason, remedy)])
