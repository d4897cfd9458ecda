"""Cross-validation on Ray, against scikit-learn on the real images."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fetal_core.audit import audit
from fetal_core.manifest import Manifest
from fetal_core.split import make_folds
from ray_jobs import crossval
from ray_jobs.command import entry

pytestmark = pytest.mark.ray

FOLDS, REPEATS = 5, 2
SIZE_PX = 224
WEIGHT_DECAY = 0.01  # of probe.toml


def run_crossval(data: Path, weights: str, out: Path) -> dict[str, float]:
    settings = ["--config", "probe", "--model.architecture", "squeezenet1_1"]
    settings += ["--folds", str(FOLDS), "--repeats", str(REPEATS), "--evaluate.resamples", "200"]
    words = [str(data), *settings, "--model.weights", weights, "--out", str(out)]
    assert entry(crossval.main, words) == 0
    found: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return found


def letterboxed(file: Path) -> npt.NDArray[np.uint8]:
    with Image.open(file) as image:
        grey = image.convert("L")
    scale = SIZE_PX / max(grey.size)
    width, height = (max(1, round(side * scale)) for side in grey.size)
    canvas = Image.new("L", (SIZE_PX, SIZE_PX))
    corner = ((SIZE_PX - width) // 2, (SIZE_PX - height) // 2)
    canvas.paste(grey.resize((width, height), Image.Resampling.BILINEAR), corner)
    return np.asarray(canvas)


@torch.inference_mode()
def squeezenet_features(files: list[Path], weights: Path) -> npt.NDArray[np.float64]:
    network = torchvision.models.squeezenet1_1()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    found = []
    for file in files:
        image_CHW = torch.from_numpy(letterboxed(file).copy()).div(255).expand(3, -1, -1)
        maps_1CHW = network.features(((image_CHW - mean) / std).unsqueeze(0))
        found.append(maps_1CHW.mean((0, 2, 3)).double().numpy())
    return np.stack(found)


def logistic_regression_accuracy(manifest: Manifest, features_NF: npt.NDArray[np.float64]) -> float:
    row_of = {image_id: row for row, image_id in enumerate(manifest.ids)}
    hits = Counter[int]()
    for fold in make_folds(manifest, FOLDS, REPEATS, 0):
        train = [row_of[image_id] for image_id in fold.train_ids]
        test = [row_of[image_id] for image_id in fold.test_ids]
        inverse_strength = 1 / (len(train) * WEIGHT_DECAY)
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=inverse_strength, max_iter=2000)
        )
        model.fit(features_NF[train], manifest.labels[train])
        right = model.predict(features_NF[test]) == manifest.labels[test]
        hits[fold.repeat] += int(right.sum())
    return float(np.mean([count / len(manifest) for count in hits.values()]))


def test_probe_on_real_images_equals_logistic_regression_and_beats_random_weights(
    cluster: None, shared_data: Path, shared_weights: Path, tmp_path: Path
) -> None:
    data = shared_data / "fetal_planes"
    weights = shared_weights / "squeezenet1_1_imagenet.pth"
    probe = run_crossval(data, str(weights), tmp_path / "probe")
    untrained = run_crossval(data, "none", tmp_path / "none")

    manifest = audit(str(data)).raise_on_error()
    files = [data / path for path in manifest.table["path"].to_pylist()]
    expected = logistic_regression_accuracy(manifest, squeezenet_features(files, weights))
    assert probe["images"] == len(files)
    assert probe["accuracy"] == pytest.approx(expected, abs=0.01)
    assert probe["accuracy"] >= untrained["accuracy"] + 0.10
    assert (tmp_path / "probe/report.html").stat().st_size > 0
