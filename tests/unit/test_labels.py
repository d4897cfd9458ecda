"""Label tables of every shape, and every fault of a table by row and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_samples import HEADER, encode, texture
from fetal_core.config import parse
from fetal_core.errors import ConfigError, Problem
from fetal_core.labels import LabelRow, LabelsConfig, read_labels, read_table

ROWS = "a1;7;Fetal brain;Trans-thalamic;Op. 1;Aloka;1 \nb1;8;Other;Not A Brain;Op. 2;Other;0 \n"


def read(
    folder: Path, content: str | bytes, **config: object
) -> tuple[list[LabelRow], list[Problem]]:
    table = folder / "labels.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(str(folder), LabelsConfig(**config))


def kinds(problems: list[Problem]) -> list[str]:
    return [problem.kind for problem in problems]


def test_the_databases_own_table(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, HEADER + ROWS)
    assert problems == []
    assert rows == [
        LabelRow("a1", 2, "7", "Fetal brain", "Trans-thalamic", "Op. 1", "Aloka", False),
        LabelRow("b1", 3, "8", "Other", "Not A Brain", "Op. 2", "Other", True),
    ]


@pytest.mark.parametrize(
    "table",
    [
        "\ufeff" + HEADER + ROWS,
        (HEADER + ROWS).replace("\n", "\r\n"),
        (HEADER + ROWS).replace(";", ","),
        (HEADER + ROWS).replace(";", "\t"),
        (HEADER + ROWS).replace(";", " ; "),
        HEADER + ROWS + ";;;;;;\n\n",
        (HEADER + ROWS).replace("a1;", "a1.png;").replace("b1;", '"b1.PNG";'),
    ],
    ids=["bom", "crlf", "comma", "tab", "spaces", "blank-lines", "extensions"],
)
def test_harmless_variants_read_the_same(tmp_path: Path, table: str) -> None:
    plain, _ = read(tmp_path, HEADER + ROWS)
    rows, problems = read(tmp_path, table)
    assert problems == []
    assert rows == plain


def test_two_columns(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, "Image_name,Plane\na1,Fetal brain\n")
    assert problems == []
    assert rows == [LabelRow("a1", 2, None, "Fetal brain")]


def test_any_table_by_mapping(tmp_path: Path) -> None:
    columns = {"image": "File", "plane": "View", "patient": "MRN"}
    rows, problems = read(
        tmp_path, "MRN,Date,File,View\n9,1.1.,sub/a1.dcm,femur\n", columns=columns
    )
    assert rows == [LabelRow("sub/a1", 2, "9", "femur")]
    assert kinds(problems) == ["unknown-columns"]
    assert problems[0].severity == "warning"
    assert "'Date'" in problems[0].reason


def test_patient_by_regular_expression(tmp_path: Path) -> None:
    table = "Image_name,Plane\nPatient12_a,Other\nPatient13_b,Other\nodd,Other\n"
    rows, problems = read(tmp_path, table, patient_regex=r"Patient(\d+)_")
    assert [row.patient for row in rows] == ["12", "13"]
    assert [(problem.kind, problem.row) for problem in problems] == [("no-patient-match", 4)]


def test_folders_named_by_class(tmp_path: Path) -> None:
    for name in ("brain/p1_1.png", "brain/p2_1.png", "femur/p1_1.png", "femur/notes.txt"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(texture(1)))
    rows, problems = read_labels(str(tmp_path), LabelsConfig(patient_regex=r"^(p\d)"))
    assert problems == []
    assert rows == [
        LabelRow("brain/p1_1", None, "p1", "brain"),
        LabelRow("brain/p2_1", None, "p2", "brain"),
        LabelRow("femur/p1_1", None, "p1", "femur"),
    ]


def test_the_one_recognised_table_is_found(tmp_path: Path) -> None:
    (tmp_path / "export.csv").write_text("Image_name,Plane\na1,Other\n")
    (tmp_path / "SOURCES.csv").write_text("image,licence\na1,CC BY\n")
    rows, problems = read_labels(str(tmp_path), LabelsConfig())
    assert (len(rows), problems) == (1, [])
    (tmp_path / "other.csv").write_text("Image_name,Plane\na1,Other\n")
    rows, problems = read_labels(str(tmp_path), LabelsConfig())
    assert (rows, kinds(problems)) == ([], ["many-tables"])
    rows, problems = read_labels(str(tmp_path), LabelsConfig(table="other.csv"))
    assert (len(rows), problems) == (1, [])


def test_a_folder_without_labels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(texture(1)))
    assert kinds(read_labels(str(tmp_path), LabelsConfig())[1]) == ["no-labels"]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ((HEADER + ROWS).encode("utf-16"), "UTF-16"),
        ((HEADER + ROWS).encode("utf-16-le"), "UTF-16"),
        ((HEADER + ROWS).encode("utf-16-be"), "UTF-16BE"),
        ((HEADER + ROWS).replace("Other;Not", "Fémur;Not").encode("latin-1"), "WINDOWS-1252"),
        ((HEADER + ROWS).replace("Aloka", "Al\0ka").encode(), "UTF-8"),
    ],
    ids=["utf-16", "utf-16-le", "utf-16-be", "latin-1", "nul"],
)
def test_wrong_encodings_say_how_to_convert(tmp_path: Path, data: bytes, named: str) -> None:
    rows, problems = read(tmp_path, data)
    assert rows == []
    assert kinds(problems) == ["wrong-encoding"]
    assert named in problems[0].remedy


def test_faulty_rows_are_all_named(tmp_path: Path) -> None:
    bad = "c1;9;Other\n;9;Other;;;;1\nd1;;Other;;;;1\ne1;9;Other;;;;7\nf1;9;;;;;0\n"
    rows, problems = read(tmp_path, HEADER + ROWS + bad)
    assert [row.image for row in rows] == ["a1", "b1"]
    assert sorted((problem.row, problem.kind) for problem in problems) == [
        (4, "ragged-row"),
        (5, "missing-cell"),
        (6, "missing-cell"),
        (7, "bad-train-value"),
        (8, "missing-cell"),
    ]


def test_an_open_quotation_mark_is_found(tmp_path: Path) -> None:
    _, problems = read(tmp_path, 'Image_name,Plane\na1,Other\nb1,"Other\nc1,Other\n')
    assert [(problem.kind, problem.row) for problem in problems] == [("ragged-row", 3)]


@pytest.mark.parametrize(
    ("table", "kind", "told"),
    [
        ("", "empty-table", "empty"),
        (HEADER, "empty-table", "header only"),
        ("Image_nam,Plane\na,b\n", "unknown-columns", "did you mean 'Image_nam'?"),
        ("Image_name,Plane,plane\na,b,c\n", "duplicate-column", "2 times"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, table: str, kind: str, told: str) -> None:
    rows, problems = read(tmp_path, table)
    assert rows == []
    assert kinds(problems) == [kind]
    assert told in problems[0].reason


def test_brain_sub_planes_become_classes() -> None:
    brain = LabelRow("a", 2, "1", "Fetal brain", "Other")
    femur = LabelRow("b", 3, "1", "Fetal femur", "Not A Brain")
    assert [row.class_name("plane_and_brain") for row in (brain, femur)] == [
        "Fetal brain: Other",
        "Fetal femur",
    ]
    assert brain.class_name("plane") == "Fetal brain"


def test_configuration_faults_name_the_field() -> None:
    with pytest.raises(ConfigError, match="columns"):
        parse(LabelsConfig, {"columns": {"picture": "x"}}, "test")
    with pytest.raises(ConfigError, match=r"patient_regex: .*not a regular expression"):
        parse(LabelsConfig, {"patient_regex": "("}, "test")
    with pytest.raises(ConfigError, match="classes: named more than once: 'A'"):
        parse(LabelsConfig, {"classes": ["A", "B", "A"]}, "test")


def test_the_whole_real_table(shared_data: Path) -> None:
    rows, problems = read_table(str(shared_data / "FETAL_PLANES_DB_data.csv"), LabelsConfig())
    assert problems == []
    assert len(rows) == 12_400
    assert len({row.patient for row in rows}) == 1_792
    assert sum(row.official_test or False for row in rows) == 5_271
    assert len({row.class_name("plane") for row in rows}) == 6
    assert len({row.class_name("plane_and_brain") for row in rows}) == 9
