"""Linear probing against scikit-learn, and the order of probing and fine-tuning."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from builders import CLASSES, InterruptedContext, InterruptionError, fit_config, kept, toy_data
from fetal_core.checkpoint import load_weights
from fetal_core.errors import NonFiniteLossError
from fetal_core.fit_config import FitConfig
from fetal_core.losses import Loss
from fetal_core.model import build
from fetal_core.probe import Features, extract, train_head
from fetal_core.run_context import Event, LocalContext
from fetal_core.steps import StepEngine
from fetal_core.train import fit

TRAIN_ROWS = 240


def made_features(seed: int = 0) -> tuple[Features, Features]:
    """Training and validation features of four classes, in units as different as a backbone's."""
    features_NF, labels_N = make_classification(
        400, 12, n_informative=8, n_classes=4, class_sep=0.8, random_state=seed
    )
    features_NF = features_NF * np.logspace(-2, 2, 12) + 5
    features, labels = torch.tensor(features_NF, dtype=torch.float32), torch.tensor(labels_N)
    return (
        Features(features[:TRAIN_ROWS], labels[:TRAIN_ROWS]),
        Features(features[TRAIN_ROWS:], labels[TRAIN_ROWS:]),
    )


def probe_config(**optim: object) -> FitConfig:
    return fit_config(optim=optim, train={"mode": "probe", "batch_size": 32})


@pytest.mark.parametrize("weight_decay", [0.001, 0.03, 1.0])
def test_lbfgs_is_scikit_learns_logistic_regression(weight_decay: float) -> None:
    train, val = made_features()
    head = nn.Linear(12, 4)
    config = probe_config(name="lbfgs", weight_decay=weight_decay)
    history = train_head(config, train, val, head, epochs=1)
    scaler = StandardScaler().fit(train.features_NF.double())
    reference = LogisticRegression(C=1 / (TRAIN_ROWS * weight_decay), tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(train.features_NF.double()), train.labels_N)
    standard_NF = scaler.transform(val.features_NF.double())
    # The head takes the features as they are: their standardisation lies in its weights.
    with torch.no_grad():
        found_NK = head(val.features_NF).softmax(1).numpy()
    np.testing.assert_allclose(found_NK, reference.predict_proba(standard_NF), atol=1e-3)
    np.testing.assert_array_equal(found_NK.argmax(1), reference.predict(standard_NF))
    assert len(history) == 1
    accuracy = reference.score(standard_NF, val.labels_N)
    assert history[0]["val_accuracy"] == pytest.approx(accuracy)


def test_constant_features_do_no_harm() -> None:
    train, val = made_features()
    with_constant = [
        Features(torch.cat([part.features_NF, torch.full((len(part.labels_N), 1), 7.0)], 1), y)
        for part, y in ((train, train.labels_N), (val, val.labels_N))
    ]
    plain, wide = nn.Linear(12, 4), nn.Linear(13, 4)
    config = probe_config(name="lbfgs", weight_decay=0.03)
    train_head(config, train, val, plain, 1)
    train_head(config, *with_constant, wide, 1)
    with torch.no_grad():
        expected_NK = plain(val.features_NF).softmax(1)
        found_NK = wide(with_constant[1].features_NF).softmax(1)
    torch.testing.assert_close(found_NK, expected_NK, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "optim", [{"name": "sgd", "lr": 0.1}, {"name": "adam", "lr": 0.02}, {"name": "adamw"}]
)
def test_descent_improves_and_the_best_epoch_is_kept(optim: dict[str, object]) -> None:
    train, val = made_features()
    head = nn.Linear(12, 4)
    history = train_head(probe_config(**optim), train, val, head, epochs=12)
    assert [record["epoch"] for record in history] == list(range(1, 13))
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    best = max(record["val_macro_f1"] for record in history)
    first_best = next(record for record in history if record["val_macro_f1"] == best)
    assert [r for r in history if r["is_best"]][-1] == first_best
    with torch.no_grad():
        logits_NK = head(val.features_NF)
    accuracy = (logits_NK.argmax(1) == val.labels_N).float().mean()
    assert float(accuracy) == pytest.approx(first_best["val_accuracy"])
    loss = nn.functional.cross_entropy(logits_NK, val.labels_N)
    assert float(loss) == pytest.approx(first_best["val_loss"], rel=1e-4)


def test_probing_is_deterministic() -> None:
    train, val = made_features()
    heads = [nn.Linear(12, 4) for _ in range(2)]
    for head in heads:
        train_head(probe_config(name="sgd", lr=0.05), train, val, head, 3)
    assert torch.equal(heads[0].weight, heads[1].weight)


def test_features_that_are_not_finite_stop_the_probe() -> None:
    train, val = made_features()
    train.features_NF[3, 2] = math.inf
    for name in ("sgd", "lbfgs"):
        with pytest.raises(NonFiniteLossError, match="linear head"):
            train_head(probe_config(name=name), train, val, nn.Linear(12, 4), 2)


def test_extracted_features_are_those_of_the_backbone(tmp_path: Path) -> None:
    data = toy_data()
    config = fit_config()
    model = build(config.model, 4, data.mean, data.std, 0, data.train.size_px)
    engine = StepEngine(model, Loss("cross_entropy"), LocalContext(tmp_path), "fp32")
    found = extract(engine, data.train)
    with torch.inference_mode():
        expected_NF = model.eval().features(data.train.images(range(24)).float() / 255)
    torch.testing.assert_close(found.features_NF, expected_NF)
    assert torch.equal(found.labels_N, data.train.labels_N)


def test_probe_trains_the_head_and_leaves_the_backbone(tmp_path: Path) -> None:
    data, events = toy_data(), list[Event]()
    config = fit_config(
        optim={"name": "lbfgs", "weight_decay": 0.01}, train={"mode": "probe", "epochs": 5}
    )
    context = LocalContext(tmp_path, on_event=events.append)
    progress = fit(config, data, context)
    start = build(config.model, len(CLASSES), data.mean, data.std, 0, data.train.size_px)
    found = build(config.model, len(CLASSES), data.mean, data.std, 1, data.train.size_px)
    load_weights(kept(tmp_path, "best"), found)
    for key, value in start.backbone.state_dict().items():
        assert torch.equal(found.backbone.state_dict()[key], value)
    assert not torch.equal(found.head.weight, start.head.weight)
    engine = StepEngine(found, Loss("cross_entropy"), context, "fp32")
    record = progress.history[progress.best_epoch - 1]
    assert engine.evaluate(data.val).loss == pytest.approx(record["val_loss"], rel=1e-3)
    assert record["val_accuracy"] > 0.95
    assert [event["kind"] for event in events] == ["probe"]
    assert events[0]["history"] == progress.history


@pytest.mark.parametrize("ema_decay", [0.0, 0.999])
def test_fine_tuning_starts_from_the_trained_head(tmp_path: Path, ema_decay: float) -> None:
    """A long warm-up makes the first step tiny: it begins and ends where the probe has ended."""
    events: list[Event] = []
    config = fit_config(
        optim={"name": "adam", "lr": 1e-3},
        schedule={"name": "constant", "warmup_epochs": 100},
        train={
            "mode": "probe_then_finetune",
            "probe_epochs": 150,
            "epochs": 100,
            "batch_size": 24,
            "ema_decay": ema_decay,
            "select_by": "val_loss",
        },
    )
    context = InterruptedContext(tmp_path, after=1, on_event=events.append)
    with pytest.raises(InterruptionError):
        fit(config, toy_data(), context)
    probe, first = events[0], events[-1]
    assert (probe["kind"], first["kind"], first["epoch"]) == ("probe", "epoch", 1)
    best = [record for record in probe["history"] if record["is_best"]][-1]
    assert best["val_loss"] < 1.0
    assert first["val_loss"] == pytest.approx(best["val_loss"], abs=0.01)
