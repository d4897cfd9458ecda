"""`fetal predict` as its users call it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from faults import Capture, bad_file_name, refused, truncate
from fetal_core.bundle import Bundle, BundleInfo
from fetal_core.model import PlaneClassifier
from fetal_core.preprocess import PreprocessConfig
from ray_jobs import predict
from ray_jobs.command import entry


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An untrained model."""
    info = BundleInfo(
        architecture="squeezenet1_1",
        classes=("Fetal brain", "Fetal femur"),
        preprocess=PreprocessConfig(size_px=32),
        loss="cross_entropy",
        mean=(0.2,),
        std=(0.1,),
    )
    model = PlaneClassifier("squeezenet1_1", 2, mean=info.mean, std=info.std)
    Bundle(info, model).save(str(tmp_path / "bundle"))
    return tmp_path / "bundle"


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_prediction_needs_a_whole_bundle(
    file: str, damage: str, bundle: Path, textures: Path, capsys: Capture
) -> None:
    part = bundle / file
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:100])
    said = refused(predict.main, [str(bundle), str(textures / "images/P01_0.png")], capsys)
    assert file in said or str(bundle) in said


def test_good_files_are_predicted_beside_a_bad_one(
    bundle: Path, textures: Path, capsys: Capture
) -> None:
    truncate(textures)
    files = [str(textures / f"images/P0{i}_0.png") for i in (1, 2, 3)]
    said = refused(predict.main, [str(bundle), *files], capsys)
    assert "P01_0.png" in said
    assert "P02_0.png" in said
    assert "1 files have no prediction" in said
    assert "truncated-image" in said


@pytest.mark.parametrize("words", [[], ["empty"], ["empty", "texts"]])
def test_a_prediction_of_nothing_is_refused(
    words: list[str], bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/notes").write_text("no image")
    said = refused(predict.main, [str(bundle), *(str(tmp_path / word) for word in words)], capsys)
    assert "Nothing to predict" in said
    assert all(str(tmp_path / word) in said for word in words)


def test_an_empty_folder_beside_an_image_is_named(
    bundle: Path, textures: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    files = [str(textures / "images/P01_0.png"), str(tmp_path / "empty")]
    said = refused(predict.main, [str(bundle), *files], capsys)
    assert "P01_0.png" in said
    assert "no-images" in said


def test_dicom_files_without_suffix_are_predicted(
    bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "study").mkdir()
    sample = get_testdata_file("CT_small.dcm", download=False)
    (tmp_path / "study/IM0001").write_bytes(Path(str(sample)).read_bytes())
    assert entry(predict.main, [str(bundle), str(tmp_path / "study")]) == 0
    assert "IM0001" in capsys.readouterr().out


def test_folders_with_unreadable_names_are_refused(
    bundle: Path, textures: Path, capsys: Capture
) -> None:
    bad_file_name(textures)
    said = refused(predict.main, [str(bundle), str(textures / "images")], capsys)
    assert "UTF-8" in said
