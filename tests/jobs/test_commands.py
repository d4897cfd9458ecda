"""Commands as their users call them: bad input ends in one clear error and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cohorts
from cohorts import HEADER, png
from faults import (
    Capture,
    bad_file_name,
    duplicate_across_patients,
    huge_header,
    leak_a_patient,
    no_images,
    no_table,
    one_class,
    one_pixel,
    refused,
    text_as_image,
    truncate,
    utf16_table,
)
from fetal_core import storage
from ray_jobs import audit, crossval, demo, evaluate, phantom, prepare, run, train
from ray_jobs.cli import COMMANDS
from ray_jobs.command import entry

FAULTS = [
    (one_class, "single-class"),
    (leak_a_patient, "leaked-patient"),
    (duplicate_across_patients, "duplicate"),
    (truncate, "truncated-image"),
    (one_pixel, "too-small"),
    (huge_header, "60000 x 60000"),
    (text_as_image, "P03_0.png"),
    (utf16_table, "labels.csv"),
    (no_table, "label"),
    (no_images, "missing-image"),
    (bad_file_name, "UTF-8"),
]


@pytest.mark.parametrize(
    ("spoil", "named"), FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_faulty_data_end_in_one_error(
    spoil: Callable[[Path], None], named: str, textures: Path, tmp_path: Path, capsys: Capture
) -> None:
    spoil(textures)
    said = refused(prepare.main, [str(textures), "--out", str(tmp_path / "out")], capsys)
    assert named in said
    assert said.count("error:") == 1
    assert not (tmp_path / "out").exists()
    assert named in refused(audit.main, [str(textures)], capsys)


@pytest.mark.parametrize("stage", [prepare, run, crossval])
def test_missing_folder(stage: object, cluster: None, tmp_path: Path, capsys: Capture) -> None:
    words = [str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    said = refused(stage.main, words, capsys)  # type: ignore[attr-defined]
    assert "nowhere" in said
    assert not (tmp_path / "out").exists()


def test_a_cohort_needs_a_process_to_draw_it(tmp_path: Path, capsys: Capture) -> None:
    words = [str(tmp_path / "out"), "--workers", "0"]
    assert "--workers 0: at least one" in refused(phantom.main, words, capsys)
    assert not (tmp_path / "out").exists()


def test_windows_line_ends_are_no_fault(textures: Path, capsys: Capture) -> None:
    table = textures / "labels.csv"
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    assert entry(audit.main, [str(textures)]) == 0
    assert "no errors" in capsys.readouterr().out


WRONG_WORDS = [
    (["--train.epoch", "3"], "--train.epoch"),
    (["--train.epochs", "0"], "train.epochs: Input should be greater than or equal to 1"),
    (["--train.epochs", "many"], "many"),
    (["--optim.name", "lbfgs"], "lbfgs"),
    (["--config", "orginal"], "original"),
    (["--config", "nowhere.toml"], "nowhere.toml"),
    (["--config"], "--config"),
]


@pytest.mark.parametrize(("words", "named"), WRONG_WORDS)
def test_wrong_flags(
    words: list[str], named: str, textures: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = [str(textures), "--out", str(tmp_path / "out"), *words]
    assert named in refused(prepare.main, arguments, capsys)
    assert not (tmp_path / "out").exists()


def test_faults_of_a_configuration_file_come_together(
    textures: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[train]\nepoch = 3\nbatch_size = 0\n[preproces]\nfit = "letterbox"\n')
    arguments = [str(textures), "--out", str(tmp_path / "out"), "--config", str(file)]
    said = refused(prepare.main, arguments, capsys)
    for expected in ("train.epoch", "'epochs'", "train.batch_size", "'preprocess'"):
        assert expected in said
    assert not (tmp_path / "out").exists()


def test_training_needs_a_prepared_folder(textures: Path, tmp_path: Path, capsys: Capture) -> None:
    words = [str(textures), "--runs", str(tmp_path / "runs")]
    assert "fetal prepare" in refused(train.main, words, capsys)
    assert not (tmp_path / "runs").exists()


def test_evaluation_needs_a_run(textures: Path, capsys: Capture) -> None:
    assert "not a run" in refused(evaluate.main, [str(textures)], capsys)


def test_the_demonstration_is_not_written_to_object_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "local folder" in refused(demo.main, ["--out", "s3://bucket/cohort"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_synthetic_cohort_is_written_to_a_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    out = f"{bucket}/cohort"
    words = ["--images", "12", "--patients", "12", "--workers", "1"]
    assert entry(phantom.main, [out, *words]) == 0
    flat = storage.list_files(out, recursive=False)
    assert flat == [f"{out}/labels.csv", f"{out}/phantom.json"]
    assert len(storage.list_files(f"{out}/images")) == 12
    assert entry(phantom.main, [out, *words]) == 0
    other = [out, *words, "--seed", "9"]
    assert "another cohort" in refused(phantom.main, other, capsys)
    storage.write_bytes(f"{bucket}/notes/file.txt", b"kept")
    assert "other files" in refused(phantom.main, [f"{bucket}/notes", *words], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_cohort_has_an_image_for_each_row_of_a_table(tmp_path: Path) -> None:
    rows = (
        "Patient00007_Plane3_1_of_1;7;Fetal brain;Trans-thalamic;Op. 1;Voluson E6;1 ",
        "Patient00007_Plane6_1_of_1;7;Fetal thorax;Not A Brain;Op. 1;Voluson E6;1 ",
        "Patient00002_Plane2_1_of_1;2;Fetal abdomen;Not A Brain;Other;Aloka;0 ",
    )
    table = tmp_path / "FETAL_PLANES_DB_data.csv"
    table.write_text("\n".join((HEADER, *rows)) + "\n")
    code, output = cohorts.run("phantom", "twin", "--like", table.name, cwd=tmp_path)
    assert code == 0, output
    assert (tmp_path / "twin/labels.csv").read_bytes() == table.read_bytes()
    assert {file.stem for file in (tmp_path / "twin/images").iterdir()} == {
        row.partition(";")[0] for row in rows
    }


def test_the_findings_of_an_audit_are_written(textures: Path, tmp_path: Path) -> None:
    (textures / "images/extra.png").write_bytes(png(500))
    assert entry(audit.main, [str(textures), "--out", str(tmp_path / "found")]) == 0
    (finding,) = json.loads((tmp_path / "found/audit.json").read_text())
    assert finding["kind"] == "image-without-row"
    assert [file.name for file in (tmp_path / "found").iterdir()] == ["audit.json"]


def test_faults_of_compared_tables_are_shown(textures: Path, capsys: Capture) -> None:
    table, ragged = textures / "labels.csv", textures / "other.csv"
    assert entry(audit.main, [str(table), "--against", str(table)]) == 0
    ragged.write_text(table.read_text().replace("P01_0;1;", "P01_0;"))
    said = refused(audit.main, [str(table), "--against", str(ragged)], capsys)
    assert "other.csv, row 3" in said
    assert "0 disagreements in 9 common images" in said


def test_a_train_column_that_is_not_used_may_mix_patients(textures: Path) -> None:
    leak_a_patient(textures)
    assert entry(audit.main, [str(textures)]) == 1
    assert entry(audit.main, [str(textures), "--split.no-use-official-test"]) == 0


@pytest.mark.parametrize(
    ("address", "named"),
    [("127.0.0.1:1", "Connection refused"), ("http://127.0.0.1:8265", "Invalid Ray address")],
)
def test_a_cluster_that_does_not_answer_is_one_error(
    address: str, named: str, textures: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.prepare", str(textures), "--out", str(tmp_path / "out")],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: RAY_ADDRESS={address}: no Ray cluster answers there")
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/shards/index.json").exists()


@pytest.mark.parametrize("stage", COMMANDS)
def test_every_stage_is_a_module_with_help(stage: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"ray_jobs.{stage}", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: fetal {stage}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["phantom", "--help"], ["--version"]])
def test_a_reader_that_stops_early_is_no_error(words: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(timeout=60)


def test_an_unknown_command_names_the_nearest() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", "evalaute"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "fetal evaluate" in done.stderr
