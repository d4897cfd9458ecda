"""Every fault of a folder of images and its label table is one clear finding."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_samples import encode, texture, write_folder
from fetal_core.audit import AuditResult, audit
from fetal_core.errors import DataError, Problem
from fetal_core.images import ImageLimits
from fetal_core.labels import LabelsConfig
from fetal_core.manifest import SCHEMA


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def run(folder: Path, **options: object) -> AuditResult:
    names = ("allow_no_patients", "use_official_test")
    switches = {name: bool(options.pop(name)) for name in names if name in options}
    return audit(str(folder), LabelsConfig(**options), workers=1, **switches)


def only(result: AuditResult) -> Problem:
    assert len(result.problems) == 1, [str(problem) for problem in result.problems]
    return result.problems[0]


def add_row(folder: Path, line: str) -> None:
    with (folder / "labels.csv").open("a") as table:
        table.write(line + "\n")


def replace_in_table(folder: Path, old: str, new: str) -> None:
    table = folder / "labels.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))


def test_a_clean_folder_gives_a_manifest(folder: Path) -> None:
    result = run(folder)
    manifest = result.raise_on_error()
    assert result.problems == ()
    assert dict(result.counts) == {
        "rows": 8, "files": 8, "images": 8, "patients": 4, "errors": 0, "warnings": 0,
    }  # fmt: skip
    assert manifest.table.schema == SCHEMA
    assert manifest.classes == ("Fetal brain", "Fetal femur")
    first = manifest.where(["P1_0"]).to_pylist()[0]
    data = (folder / "images/P1_0.png").read_bytes()
    assert (first["path"], first["row"], first["label"]) == ("images/P1_0.png", 4, 1)
    assert (first["patient"], first["machine"], first["official_test"]) == ("1", "Aloka", False)
    assert (first["width_px"], first["height_px"], first["mode"]) == (56, 40, "L")
    assert first["file_bytes"] == len(data)


def test_many_processes_and_one_give_the_same_manifest(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", patients=140)
    seen: list[tuple[int, int]] = []
    together = audit(
        str(folder), workers=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 280) for done in range(1, 281)]
    assert together.raise_on_error().hash == run(folder).raise_on_error().hash


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty-image"),
        (b"Image_name,Plane\n", "not-an-image"),
        (encode(texture(99))[:400], "truncated-image"),
        (encode(np.zeros((1, 1), np.uint8)), "too-small"),
    ],
)
def test_a_bad_image_is_named_with_its_row(folder: Path, data: bytes, kind: str) -> None:
    (folder / "images/P1_0.png").write_bytes(data)
    result = run(folder)
    problem = only(result)
    assert (problem.kind, problem.where, problem.row) == (kind, "images/P1_0.png", 4)
    assert problem.remedy
    assert result.manifest is None
    with pytest.raises(DataError, match=kind):
        result.raise_on_error()


def test_a_bomb_is_refused_by_its_header(folder: Path) -> None:
    body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    (folder / "images/P1_0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    assert only(run(folder)).kind == "too-large"


def test_a_file_beyond_the_limit_is_not_read(folder: Path) -> None:
    with (folder / "images/P1_0.png").open("wb") as file:
        file.truncate(10**12)
    assert only(run(folder)).kind == "too-large"


def test_all_faults_come_in_one_run(folder: Path) -> None:
    (folder / "images/P0_0.png").write_bytes(b"")
    (folder / "images/P1_0.png").unlink()
    (folder / "images/extra.png").write_bytes(encode(texture(77)))
    add_row(folder, "P2_0;2;Fetal femur;Not A Brain;Op. 1;Aloka;1")
    found = {(problem.kind, problem.where, problem.row) for problem in run(folder).problems}
    assert found == {
        ("empty-image", "images/P0_0.png", 2),
        ("missing-image", "P1_0", 4),
        ("image-without-row", "images/extra.png", None),
        ("conflicting-rows", "P2_0", 10),
    }


def test_misjoined_labels_are_noticed(folder: Path) -> None:
    replace_in_table(folder, "Fetal femur", "Fetal brain")
    problem = only(run(folder))
    assert problem.kind == "single-class"
    assert "wrong index" in problem.reason


def test_an_equal_repeated_row_is_a_warning(folder: Path) -> None:
    add_row(folder, "P2_0.png;2;Fetal brain;Not A Brain;Op. 1;Aloka;1")
    result = run(folder)
    assert (only(result).kind, only(result).severity) == ("repeated-row", "warning")
    assert len(result.raise_on_error()) == 8


def test_exact_duplicates(folder: Path) -> None:
    images = folder / "images"
    (images / "P0_1.png").write_bytes((images / "P0_0.png").read_bytes())
    problem = only(run(folder))
    assert (problem.kind, problem.severity) == ("duplicate-image", "warning")
    assert "same bytes" in problem.reason
    pixels = Image.open(images / "P0_0.png")
    pixels.save(images / "P0_1.png", compress_level=0)
    assert "same pixels" in only(run(folder)).reason
    pixels.save(images / "P2_0.png")
    problem = only(run(folder))
    assert (problem.kind, problem.severity) == ("duplicate-across-patients", "error")
    assert run(folder, exclude=("P2_0",)).manifest is not None
    pixels.save(images / "P1_0.png")
    problem = only(run(folder))
    assert (problem.kind, problem.severity) == ("duplicate-with-other-label", "error")


def test_near_duplicates_across_patients(folder: Path) -> None:
    pixels = Image.open(folder / "images/P0_0.png").resize((112, 80))
    pixels.save(folder / "images/P0_1.png")
    assert run(folder).problems == ()
    pixels.point(lambda value: value * 0.9).save(folder / "images/P2_0.png")
    result = run(folder)
    assert (only(result).kind, only(result).severity) == ("near-duplicate", "warning")
    assert all(name in only(result).where for name in ("P0_0", "P0_1", "P2_0"))


def test_a_class_of_one_patient(folder: Path) -> None:
    replace_in_table(folder, "P3_0;3;Fetal femur", "P3_0;3;Other")
    assert [problem.kind for problem in run(folder).problems] == ["rare-class"]
    result = run(folder, classes=("Fetal femur", "Fetal brain"))
    assert result.raise_on_error().classes == ("Fetal femur", "Fetal brain")
    assert len(result.raise_on_error()) == 7


def test_unknown_names_in_the_configuration(folder: Path) -> None:
    problem = only(run(folder, classes=("Fetal brain", "Fetal femur", "fetal thorax")))
    assert (problem.kind, problem.where) == ("unknown-class", "fetal thorax")
    problem = only(run(folder, exclude=("P0__0",)))
    assert problem.kind == "unknown-exclude"
    assert "did you mean 'P0_0'" in problem.reason


def test_patients_must_be_known(folder: Path) -> None:
    replace_in_table(folder, "Patient_num", "Somebody")
    kinds = {problem.kind: problem.severity for problem in run(folder).problems}
    assert kinds == {"no-patients": "error", "unknown-columns": "warning"}
    assert run(folder, allow_no_patients=True).manifest is not None
    assert run(folder, patient_regex=r"(P\d)_").manifest is not None


def test_a_leaked_patient(folder: Path) -> None:
    replace_in_table(
        folder, "P2_1;2;Fetal brain;Not A Brain;Op. 1;Aloka;1", "P2_1;2;Fetal brain;;;;0"
    )
    problem = only(run(folder))
    assert problem.kind == "leaked-patient"
    assert "patient 2" in problem.reason
    assert "row 6" in problem.reason
    assert problem.row == 7
    assert run(folder, use_official_test=False).problems == ()


def test_names_decide_and_not_positions(folder: Path) -> None:
    before = run(folder).raise_on_error()
    header, *lines = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join([header, *reversed(lines)]))
    assert run(folder).raise_on_error().hash == before.hash


def test_ambiguous_names(folder: Path) -> None:
    (folder / "images/more").mkdir()
    (folder / "images/more/P1_0.jpg").write_bytes(encode(texture(5), "JPEG"))
    problem = next(p for p in run(folder).problems if p.severity == "error")
    assert (problem.kind, problem.where, problem.row) == ("ambiguous-name", "P1_0", 4)
    assert "images/more/P1_0.jpg" in problem.reason
    replace_in_table(folder, "P1_0;", "more/P1_0.jpg;")
    assert run(folder).raise_on_error().where(["more/P1_0"])["row"].to_pylist() == [4]


def test_names_differ_by_case(folder: Path) -> None:
    replace_in_table(folder, "P1_0;", "p1_0;")
    kinds = {problem.kind for problem in run(folder).problems}
    assert kinds == {"missing-image", "image-without-row"}


def test_each_frame_of_a_sequence_is_a_row(folder: Path) -> None:
    frames = [Image.fromarray(texture(seed)) for seed in (500, 501, 502)]
    (folder / "images/P1_0.png").unlink()
    frames[0].save(folder / "images/P1_0.tif", save_all=True, append_images=frames[1:])
    manifest = run(folder).raise_on_error()
    rows = manifest.where(["P1_0#0000", "P1_0#0001", "P1_0#0002"]).to_pylist()
    assert [row["frame"] for row in rows] == [0, 1, 2]
    assert {row["patient"] for row in rows} == {"1"}
    shorter = run(folder, exclude=("P1_0#0001",)).raise_on_error()
    assert set(manifest.ids) - set(shorter.ids) == {"P1_0#0001"}


def test_tables_that_cannot_be_read_end_the_audit_with_one_finding(folder: Path) -> None:
    table = folder / "labels.csv"
    text = table.read_text()
    table.write_bytes(text.encode("utf-16"))
    assert only(run(folder)).kind == "wrong-encoding"
    table.write_bytes(text.replace("\n", "\r\n").encode())
    assert run(folder).manifest is not None
    table.unlink()
    assert only(run(folder)).kind == "no-labels"
    assert only(audit(str(folder / "nowhere"))).kind == "unreadable-data"


def test_brain_sub_planes(folder: Path) -> None:
    replace_in_table(folder, "Fetal brain;Not A Brain", "Fetal brain;Trans-thalamic")
    manifest = run(folder, target="plane_and_brain").raise_on_error()
    assert manifest.classes == ("Fetal brain: Trans-thalamic", "Fetal femur")
    replace_in_table(folder, "Brain_plane", "Sub")
    kinds = {problem.kind for problem in run(folder, target="plane_and_brain").problems}
    assert kinds == {"no-brain-planes", "unknown-columns"}


def test_nothing_left(folder: Path) -> None:
    names = tuple(f"P{patient}_{view}" for patient in range(4) for view in range(2))
    assert only(run(folder, exclude=names)).kind == "no-images"


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes on POSIX only")
def test_a_file_name_that_is_not_text(folder: Path) -> None:
    with open(os.fsencode(folder / "images") + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(encode(texture(5)))
    assert only(run(folder)).kind == "bad-file-name"


def test_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    (folder / "images/P1_0.png").write_bytes(b"")
    run(folder)
    assert sorted(folder.rglob("*")) == before


def test_limits_come_from_the_caller(folder: Path) -> None:
    result = audit(str(folder), limits=ImageLimits(min_side_px=50), workers=1)
    assert {problem.kind for problem in result.problems} == {"too-small"}
    assert result.counts["errors"] == 8


def test_the_real_images(shared_data: Path) -> None:
    result = audit(str(shared_data / "fetal_planes"))
    assert len(result.raise_on_error()) == 130
    # Two images of the published data set that are one, of patients 786 and 799.
    assert [problem.kind for problem in result.problems] == ["near-duplicate"]
    assert "Patient00786_Plane3_2_of_3" in result.problems[0].where
    full = shared_data / "FETAL_PLANES_DB_data.csv"
    part = audit(str(shared_data / "fetal_planes"), LabelsConfig(table=str(full)))
    assert part.counts["errors"] == 12_400 - 130
