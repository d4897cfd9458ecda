"""CSV bytes as cells: encoding, separator and shape are checked, meaning is not."""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass

from fetal_core.errors import Problem

_SEPARATORS = ",;\t|"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class RawTable:
    """A table's header and its rows of as many cells; white space around cells is gone.

    Attributes:
        rows: 1-based line on which the row begins, and its cells.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]


def parse_table(data: bytes, name: str) -> tuple[RawTable | None, list[Problem]]:
    """Read a CSV file with ``,``, ``;``, tab or ``|`` between cells.

    Returns:
        The table without its faulty rows, or None if nothing can be read, and all problems.
    """
    text, problem = _decode(data, name)
    if problem is not None:
        return None, [problem]
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=header.count)
    try:
        lines = _lines(text, separator)
    except csv.Error as error:
        reason = f"not a CSV table: {error}"
        return None, [Problem("bad-table", name, reason, "Export it again as CSV in UTF-8")]
    if len(lines) < 2:
        reason = "the table has a header only" if lines else "the table is empty"
        return None, [Problem("empty-table", name, reason, "Export it again with its rows")]
    columns = lines[0][1]
    rows, problems = [], []
    for line, cells in lines[1:]:
        fault = _fault(cells, len(columns))
        if fault is None:
            rows.append((line, cells))
        else:
            problems.append(Problem("ragged-row", name, *fault, line))
    return RawTable(name, columns, tuple(rows)), problems


def _decode(data: bytes, name: str) -> tuple[str, Problem | None]:
    encoding = None
    if data.startswith(_UTF16_MARKS) or data[1::2].count(0) > len(data) // 4:
        encoding = "UTF-16"
    elif data[0::2].count(0) > len(data) // 4:
        encoding = "UTF-16BE"
    if encoding is not None:
        return "", _wrong_encoding(name, f"the table is in {encoding}, not in UTF-8", encoding)
    if b"\0" in data:
        at = data.index(b"\0")
        reason = f"byte {at} is zero, so this is not a text file, or it is damaged"
        return "", _wrong_encoding(name, reason, None, line=data.count(b"\n", 0, at) + 1)
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"byte {data[error.start]:#04x} at {error.start} is not UTF-8"
        return "", _wrong_encoding(name, reason, "WINDOWS-1252", line)


def _wrong_encoding(
    name: str, reason: str, encoding: str | None, line: int | None = None
) -> Problem:
    remedy = "Export it again as CSV in UTF-8"
    if encoding is not None:
        remedy += f", or convert it: iconv -f {encoding} -t UTF-8 {name} > labels.csv"
    return Problem("wrong-encoding", name, reason, remedy, line)


def _lines(text: str, separator: str) -> list[tuple[int, tuple[str, ...]]]:
    """First line and stripped cells of each record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    lines, begin = [], 1
    for record in reader:
        cells = tuple(cell.strip() for cell in record)
        if any(cells):
            lines.append((begin, cells))
        begin = reader.line_num + 1
    return lines


def _fault(cells: tuple[str, ...], width: int) -> tuple[str, str] | None:
    if any("\n" in cell or "\r" in cell for cell in cells):
        return "a cell runs over several lines", "Close the quotation mark"
    if len(cells) != width:
        return f"{len(cells)} cells under {width} columns", "Complete or drop the row"
    return None
