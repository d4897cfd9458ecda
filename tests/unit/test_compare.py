"""Comparison of two label tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from fetal_core.compare import Disagreement, compare_tables
from fetal_core.errors import DataError


def test_tables_are_joined_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Image_name,Plane\nx,brain\ny,femur\nz,other\n")
    (tmp_path / "b.csv").write_text("Image_name,Plane\nw,brain\nz.png,other\ny,brain\nx,brain\n")
    found = compare_tables(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    assert (found.common, found.only_a, found.only_b) == (3, (), ("w",))
    assert found.disagreements == (Disagreement("y", "femur", "brain", 3, 4),)
    assert found.by_pair == {("femur", "brain"): 1}


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Image_name,Plane\nx,brain\n")
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(DataError, match="empty-table"):
        compare_tables(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))


def test_the_52_disagreements_of_the_published_tables(shared_data: Path) -> None:
    found = compare_tables(
        str(shared_data / "image_label.csv"), str(shared_data / "FETAL_PLANES_DB_data.csv")
    )
    assert (found.common, len(found.only_a), len(found.only_b)) == (1646, 0, 10_754)
    assert len(found.disagreements) == 52
    assert found.by_pair == {
        ("Fetal brain", "Fetal femur"): 16,
        ("Fetal femur", "Fetal brain"): 15,
        ("Fetal femur", "Fetal abdomen"): 15,
        ("Fetal abdomen", "Fetal thorax"): 6,
    }
