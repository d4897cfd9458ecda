"""Model bundles: the same answers after a round trip, and refusal of what is not a bundle."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from builders import SIZE_PX, toy_bundle, toy_store
from fetal_core.bundle import (
    MODEL,
    WEIGHTS,
    Bundle,
    git_commit,
    read_info,
    software_versions,
    write_info,
)
from fetal_core.errors import FetalError, ModelError

IMAGES_N1HW = toy_store(6).images(range(6)).float() / 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_bundle().save(str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def change_info(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / MODEL).read_text())
    (folder / MODEL).write_text(json.dumps(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"architecture": "shufflenet_v2_x0_5", "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)},
        {"classes": ("Fetal brain", "Schädel-Ebene"), "loss": "binary_cross_entropy"},
    ],
)
def test_round_trip_gives_identical_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    bundle = toy_bundle(**changes)
    bundle.model.to(memory_format=torch.channels_last)
    images = IMAGES_N1HW.contiguous(memory_format=torch.channels_last)
    bundle.save(str(tmp_path))
    loaded = Bundle.load(str(tmp_path))
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), bundle.model(images))
    assert (
        loaded.info.hashes["weights"]
        == hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    )
    assert loaded.info.model_copy(update={"hashes": bundle.info.hashes}) == bundle.info
    assert not loaded.model.training


def test_loading_twice_gives_the_same_model_whatever_the_random_state(folder: Path) -> None:
    logits = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Bundle.load(str(folder)).model
        with torch.inference_mode():
            logits.append(model(IMAGES_N1HW))
    assert torch.equal(*logits)


def test_a_bundle_is_json_and_safetensors(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [MODEL, WEIGHTS]
    state = safetensors.torch.load_file(folder / WEIGHTS)
    assert state["mean"].flatten().tolist() == pytest.approx([0.25])
    values = json.loads((folder / MODEL).read_text())
    assert values["preprocess"] == {"size_px": SIZE_PX, "fit": "letterbox"}
    assert values["temperature"] == 2.0


class Harmful:
    """Would run code of the file's author when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm"),))


def test_pickled_weights_are_refused_and_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for data in (pickle.dumps(Harmful()), pickle.dumps({"head.bias": Harmful()})):
        (folder / WEIGHTS).write_bytes(data)
        with pytest.raises(ModelError, match="damaged"):
            Bundle.load(str(folder))
    torch.save({"head.bias": Harmful()}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="damaged"):
        Bundle.load(str(folder))
    assert not (folder / "harm").exists()


@pytest.mark.parametrize("keep", [0, 4, 500, 100_000, -1])
def test_truncated_weights_are_a_model_error(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(ModelError, match="damaged"):
        Bundle.load(str(folder))


def test_missing_files_are_told(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(FetalError, match=WEIGHTS):
        Bundle.load(str(folder))
    (folder / MODEL).unlink()
    for missing in (folder, tmp_path / "nothing"):
        with pytest.raises(ModelError, match=r"not a model bundle \(model\.json is missing\)"):
            Bundle.load(str(missing))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_foreign_format_is_refused(folder: Path, version: object) -> None:
    change_info(folder, format=version)
    with pytest.raises(ModelError, match="this version reads format 1"):
        Bundle.load(str(folder))


def test_json_that_is_no_description_is_refused(folder: Path) -> None:
    for text in ("[]", "3", "{}", '"bundle"'):
        (folder / MODEL).write_text(text)
        with pytest.raises(ModelError, match="format"):
            read_info(str(folder))
    (folder / MODEL).write_text('{"format": 1, "classe')
    with pytest.raises(FetalError, match="not valid JSON"):
        read_info(str(folder))


def test_all_faults_of_a_description_come_together(folder: Path) -> None:
    change_info(folder, loss="hinge", temperature="hot", architectur="resnet18")
    with pytest.raises(ModelError) as caught:
        read_info(str(folder))
    for part in ("loss", "temperature", "architectur", "did you mean 'architecture'"):
        assert part in str(caught.value)


def test_another_number_of_classes_or_another_network_does_not_fit(folder: Path) -> None:
    change_info(folder, classes=["a", "b", "c"])
    with pytest.raises(ModelError, match="do not fit"):
        Bundle.load(str(folder))
    change_info(folder, classes=["a", "b", "c", "d"], architecture="shufflenet_v2_x0_5")
    with pytest.raises(ModelError, match="do not fit"):
        Bundle.load(str(folder))
    change_info(folder, architecture="squeezenet9")
    with pytest.raises(FetalError, match="did you mean"):
        Bundle.load(str(folder))


def test_description_can_be_rewritten_after_calibration(folder: Path) -> None:
    info = read_info(str(folder))
    write_info(str(folder), info.model_copy(update={"temperature": 1.5, "threshold": None}))
    loaded = Bundle.load(str(folder)).info
    assert (loaded.temperature, loaded.threshold) == (1.5, None)


def test_versions_name_the_software(monkeypatch: pytest.MonkeyPatch) -> None:
    assert software_versions()["torch"] == torch.__version__
    assert git_commit() is None or len(git_commit() or "") == 40
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
