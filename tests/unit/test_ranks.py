"""Two ranks train as one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from builders import CLASSES, comparable, fit_config, kept, toy_data
from fetal_core.checkpoint import load_weights
from fetal_core.fit_config import FitConfig
from fetal_core.losses import Loss
from fetal_core.model import PlaneClassifier, build
from fetal_core.run_context import LocalContext
from fetal_core.steps import StepEngine
from fetal_core.train import fit
from ranks import fit_on_ranks

PLAIN = fit_config(
    model={"dropout": 0.3},
    augment={"horizontal_flip": 0.5, "rotation_deg": 20, "speckle": 0.1},
    optim={"name": "adam", "lr": 3e-4, "clip_norm": 5.0},
    schedule={"name": "plateau", "patience": 0},
    train={"epochs": 3, "batch_size": 8, "micro_batch": 2, "mixup_alpha": 0.3},
)
AVERAGED = fit_config(
    model={"architecture": "shufflenet_v2_x0_5"},
    optim={"lr": 0.01},
    train={"epochs": 2, "batch_size": 12, "ema_decay": 0.8},
)
# Not Adam: its first steps are as long for a gradient that is rounding alone as for any other.
PROBED = fit_config(
    optim={"name": "sgd", "lr": 3e-4},
    train={"mode": "probe_then_finetune", "probe_epochs": 4, "epochs": 1, "micro_batch": 4},
)
CONFIGS = {"plain": PLAIN, "averaged": AVERAGED, "probed": PROBED}
pytestmark = pytest.mark.slow

Histories = dict[str, list[list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def histories(folder: Path) -> Histories:
    return fit_on_ranks(CONFIGS, folder, world_size=2)


def model_of(config: FitConfig, folder: Path) -> PlaneClassifier:
    data = toy_data(24, 9)
    model = build(config.model, len(CLASSES), data.mean, data.std, 0, data.train.size_px)
    load_weights(folder, model)
    return model


@pytest.mark.parametrize("name", ["plain", "probed"])
def test_two_ranks_give_the_curve_and_the_weights_of_one(
    folder: Path, histories: Histories, tmp_path: Path, name: str
) -> None:
    context = LocalContext(tmp_path)
    expected = fit(CONFIGS[name], toy_data(24, 9), context).history
    for record, alone in zip(histories[name][0], expected, strict=True):
        for key in ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert record[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-4), key
    together = model_of(CONFIGS[name], kept(folder / name, "latest"))
    one = model_of(CONFIGS[name], kept(tmp_path, "latest"))
    weights = together.state_dict()
    # A probed head by its answers: the weight of a feature that hardly varies is its rounding.
    by_answers = ("head.weight", "head.bias") if name == "probed" else ()
    for key, value in one.state_dict().items():
        if key not in by_answers:
            torch.testing.assert_close(weights[key], value, atol=1e-4, rtol=1e-3)
    images_NCHW = toy_data(24, 9).val.images(range(9)) / 255
    with torch.inference_mode():
        found_NK, expected_NK = (model.eval()(images_NCHW) for model in (together, one))
    torch.testing.assert_close(found_NK, expected_NK, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_ranks_record_the_same_numbers(histories: Histories, name: str) -> None:
    first, second = histories[name]
    assert comparable(first) == comparable(second)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_saved_model_is_the_one_that_all_ranks_have_validated(
    folder: Path, histories: Histories, tmp_path: Path, name: str
) -> None:
    """Batch-norm statistics, which every rank gathers on its own rows, included."""
    model = model_of(CONFIGS[name], kept(folder / name, "latest"))
    engine = StepEngine(model, Loss("cross_entropy"), LocalContext(tmp_path), "fp32")
    found = engine.evaluate(toy_data(24, 9).val)
    assert found.loss == pytest.approx(histories[name][0][-1]["val_loss"], rel=1e-5)
