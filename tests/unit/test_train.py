"""Training runs: they learn, resume exactly, stop early, keep the best epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import (
    AUGMENT,
    InterruptedContext,
    InterruptionError,
    comparable,
    expect_equal_state,
    fit_config,
    kept,
    model_of,
    toy_data,
    toy_store,
)
from fetal_core.checkpoint import load_trainer
from fetal_core.errors import ConfigError
from fetal_core.losses import Loss
from fetal_core.rows import RowStore
from fetal_core.run_context import Event, LocalContext
from fetal_core.steps import StepEngine
from fetal_core.train import fit
from fetal_core.training_data import TrainingData

RESUMABLE = {
    "sgd": {"optim": {"lr": 0.02, "momentum": 0.9}, "schedule": {"name": "cosine"}},
    "plateau, adamw, ema, mixup, dropout": {
        "model": {"architecture": "shufflenet_v2_x0_5", "dropout": 0.4},
        "optim": {"name": "adamw", "lr": 0.01, "clip_norm": 1.0},
        "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "warmup_epochs": 0.5},
        "train": {"mixup_alpha": 0.4, "ema_decay": 0.9, "micro_batch": 6},
        "loss": {"label_smoothing": 0.1},
    },
    "after a probe": {
        "optim": {"name": "adam", "lr": 0.003},
        "schedule": {"name": "step", "step_epochs": 1},
        "train": {"mode": "probe_then_finetune", "probe_epochs": 3, "ema_decay": 0.5},
    },
}


@pytest.mark.parametrize("name", RESUMABLE)
def test_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    tables: dict[str, Any] = RESUMABLE[name]
    tables = tables | {"augment": AUGMENT}
    tables["train"] = {"epochs": 4, "batch_size": 12, **tables.get("train", {})}
    config, data = fit_config(**tables), toy_data()
    whole, halved = LocalContext(tmp_path / "whole"), LocalContext(tmp_path / "halved")
    expected = fit(config, data, whole)
    with pytest.raises(InterruptionError):
        fit(config, data, InterruptedContext(tmp_path / "halved", after=2))
    assert load_trainer(kept(tmp_path / "halved", "latest"))["progress"]["epochs_done"] == 2
    found = fit(config, data, halved)
    assert comparable(found.history) == comparable(expected.history)
    assert (found.best_epoch, found.best_score) == (expected.best_epoch, expected.best_score)
    for which in ("latest", "best"):
        expect_equal_state(
            model_of(config, data, kept(tmp_path / "halved", which)).state_dict(),
            model_of(config, data, kept(tmp_path / "whole", which)).state_dict(),
        )
    states = [load_trainer(kept(tmp_path / folder, "latest")) for folder in ("halved", "whole")]
    for state in states:
        del state["progress"]
    expect_equal_state(*states)


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config, data = fit_config(), toy_data(8, 4)
    first = fit(config, data, LocalContext(tmp_path))
    events: list[Event] = []
    again = fit(config, data, LocalContext(tmp_path, on_event=events.append))
    assert again.history == first.history
    assert [event["kind"] for event in events] == ["start"]
    assert events[0]["epochs_done"] == 1


def test_two_runs_of_one_seed_agree_and_another_seed_differs(tmp_path: Path) -> None:
    data = toy_data(16, 8)
    histories = [
        comparable(
            fit(
                fit_config(augment=AUGMENT, train={"seed": seed}), data, LocalContext(folder)
            ).history
        )
        for seed, folder in ((0, tmp_path / "a"), (0, tmp_path / "b"), (1, tmp_path / "c"))
    ]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


def test_the_global_random_state_is_neither_used_nor_changed(tmp_path: Path) -> None:
    config = fit_config(
        model={"dropout": 0.5}, augment=AUGMENT, train={"mixup_alpha": 0.3, "batch_size": 16}
    )
    histories = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        progress = fit(config, toy_data(16, 8), LocalContext(tmp_path / str(seed)))
        assert torch.equal(torch.get_rng_state(), before)
        histories.append(comparable(progress.history))
    assert histories[0] == histories[1]


def test_separable_images_are_learnt(tmp_path: Path) -> None:
    config = fit_config(optim={"name": "adam", "lr": 3e-4}, train={"epochs": 6})
    data = toy_data(64, 32)
    progress = fit(config, data, LocalContext(tmp_path))
    assert progress.epochs_done == 6
    assert [record["epoch"] for record in progress.history] == [1, 2, 3, 4, 5, 6]
    assert progress.best_score > 0.95
    assert progress.history[-1]["train_loss"] < progress.history[0]["train_loss"] / 2
    unseen = toy_store(80, seed=99)
    model = model_of(config, data, kept(tmp_path, "best")).eval()
    with torch.inference_mode():
        predicted_N = model(unseen.images(range(80)).float() / 255).argmax(1)
    assert (predicted_N == unseen.labels_N).float().mean() > 0.95


def scrambled(data: TrainingData) -> TrainingData:
    """Validation labels that have nothing to do with the images: its scores go up and down."""
    val = data.val
    labels_N = val.labels_N[torch.randperm(len(val), generator=torch.Generator().manual_seed(3))]
    shuffled: RowStore = val.subset(val.image_ids)
    shuffled.labels_N = labels_N
    return replace(data, val=shuffled)


@pytest.mark.parametrize(
    ("select", "sign"), [("val_loss", -1), ("val_accuracy", 1), ("val_macro_f1", 1)]
)
def test_the_best_epoch_is_that_of_the_chosen_number(
    tmp_path: Path, select: str, sign: int
) -> None:
    config = fit_config(
        optim={"name": "adam", "lr": 1e-3}, train={"epochs": 5, "select_by": select}
    )
    data = scrambled(toy_data(24, 16))
    context = LocalContext(tmp_path)
    progress = fit(config, data, context)
    scores = [sign * record[select] for record in progress.history]
    assert len(set(scores)) > 1
    assert progress.best_score == max(scores)
    assert progress.best_epoch == 1 + scores.index(max(scores))
    model = model_of(config, data, kept(tmp_path, "best"))
    engine = StepEngine(model, Loss("cross_entropy"), context, "fp32")
    best = progress.history[progress.best_epoch - 1]
    assert best["is_best"] == 1
    found = engine.evaluate(data.val).as_dict()
    assert {f"val_{key}": value for key, value in found.items()} == {
        key: pytest.approx(value) for key, value in best.items() if key.startswith("val_")
    }


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    config = fit_config(
        optim={"lr": 1e-12}, train={"epochs": 9, "early_stop_epochs": 2, "batch_size": 16}
    )
    progress = fit(config, toy_data(16, 8), LocalContext(tmp_path))
    assert (progress.epochs_done, progress.best_epoch) == (3, 1)
    again = fit(config, toy_data(16, 8), LocalContext(tmp_path))
    assert again.epochs_done == 3


def test_averaged_weights_are_those_that_are_validated_and_saved(tmp_path: Path) -> None:
    config = fit_config(optim={"lr": 0.05}, train={"ema_decay": 0.9, "epochs": 2})
    data, context = toy_data(), LocalContext(tmp_path)
    progress = fit(config, data, context)
    model = model_of(config, data, kept(tmp_path, "latest"))
    loss = StepEngine(model, Loss("cross_entropy"), context, "fp32").evaluate(data.val).loss
    assert loss == pytest.approx(progress.history[-1]["val_loss"], rel=1e-6)
    raw = load_trainer(kept(tmp_path, "latest"))["model"]
    assert any(not torch.equal(raw[key], value) for key, value in model.state_dict().items())


def test_events_tell_the_course_of_a_run(tmp_path: Path) -> None:
    events: list[Event] = []
    config = fit_config(train={"epochs": 2, "batch_size": 6})
    progress = fit(config, toy_data(12, 4), LocalContext(tmp_path, on_event=events.append))
    assert [event["kind"] for event in events] == ["start", *["step", "step", "epoch"] * 2]
    assert events[0] | {"epochs": 2, "epochs_done": 0, "steps": 2} == events[0]
    epochs = [event for event in events if event["kind"] == "epoch"]
    assert [{k: v for k, v in event.items() if k != "kind"} for event in epochs] == (
        progress.history
    )


def test_recorded_learning_rates_are_those_of_the_schedule(tmp_path: Path) -> None:
    config = fit_config(
        optim={"lr": 1e-12},
        schedule={"name": "plateau", "patience": 0, "factor": 0.1},
        train={"epochs": 3, "batch_size": 16},
    )
    data = toy_data(16, 8)
    rates = [record["lr"] for record in fit(config, data, LocalContext(tmp_path)).history]
    assert rates == pytest.approx([1e-12, 1e-12, 1e-12])
    improving = fit_config(
        optim={"lr": 0.1},
        schedule={"name": "step", "step_epochs": 1, "step_gamma": 0.5},
        train={"epochs": 3, "batch_size": 16},
    )
    rates = [r["lr"] for r in fit(improving, data, LocalContext(tmp_path / "step")).history]
    assert rates == pytest.approx([0.05, 0.025, 0.0125])


def test_parts_without_rows_are_refused(tmp_path: Path) -> None:
    data = toy_data(8, 4)
    empty = data.train.subset([])
    for part in ("train", "val"):
        with pytest.raises(ConfigError, match="no rows"):
            fit(fit_config(), replace(data, **{part: empty}), LocalContext(tmp_path))


def test_lbfgs_is_refused_outside_probing() -> None:
    with pytest.raises(ConfigError, match="only for probe"):
        fit_config(optim={"name": "lbfgs"})
