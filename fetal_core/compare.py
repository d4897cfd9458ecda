"""One label table against another."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from fetal_core.errors import DataError, Problem
from fetal_core.labels import LabelRow, LabelsConfig, Target, read_table


class Disagreement(NamedTuple):
    """An image that two tables label differently, and the lines on which they do."""

    image: str
    plane_a: str
    plane_b: str
    row_a: int | None
    row_b: int | None


@dataclass(frozen=True)
class Comparison:
    """What two label tables say about the same images.

    Attributes:
        common: number of images in both.
        only_a: names in the first table only, sorted.
        only_b: names in the second table only, sorted.
        disagreements: images whose classes differ, sorted by name.
        problems: findings about either table that do not hinder the comparison.
    """

    common: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]
    problems: tuple[Problem, ...]

    @property
    def by_pair(self) -> Counter[tuple[str, str]]:
        """Number of disagreements by (class in the first, class in the second table)."""
        return Counter((item.plane_a, item.plane_b) for item in self.disagreements)


def compare_tables(a_uri: str, b_uri: str, config: LabelsConfig | None = None) -> Comparison:
    """Compare the classes of the images that both tables name.

    A name that a table holds twice counts with its first row.

    Raises:
        StorageError: a table cannot be read.
        DataError: a table has no row that can be read.
    """
    config = config or LabelsConfig()
    rows_a, problems_a = _by_name(a_uri, config)
    rows_b, problems_b = _by_name(b_uri, config)
    common = sorted(rows_a.keys() & rows_b.keys())
    pairs = [_pair(rows_a[name], rows_b[name], config.target) for name in common]
    return Comparison(
        common=len(common),
        only_a=tuple(sorted(rows_a.keys() - rows_b.keys())),
        only_b=tuple(sorted(rows_b.keys() - rows_a.keys())),
        disagreements=tuple(pair for pair in pairs if pair.plane_a != pair.plane_b),
        problems=(*problems_a, *problems_b),
    )


def _by_name(uri: str, config: LabelsConfig) -> tuple[dict[str, LabelRow], list[Problem]]:
    rows, problems = read_table(uri, config)
    if not rows:
        raise DataError(f"{uri}: no labels can be read from this table.", problems)
    return {row.image: row for row in reversed(rows)}, problems


def _pair(a: LabelRow, b: LabelRow, target: Target) -> Disagreement:
    return Disagreement(a.image, a.class_name(target), b.class_name(target), a.row, b.row)
