"""Runs that end inside an epoch, and go on there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from builders import (
    AUGMENT,
    InterruptionError,
    comparable,
    expect_equal_state,
    fit_config,
    kept,
    model_of,
    overflow_on_white,
    spoilt_data,
    toy_data,
)
from fetal_core.checkpoint import Progress, load_trainer
from fetal_core.errors import ConfigError
from fetal_core.fit_config import FitConfig
from fetal_core.run_context import Event, LocalContext, Request
from fetal_core.runlog import RunLog, training_history
from fetal_core.train import fit
from ranks import fit_on_ranks

EPOCHS, STEPS = 2, 4
MODES: dict[str, dict[str, Any]] = {
    "averaged, mixup, plateau": {
        "model": {"architecture": "shufflenet_v2_x0_5", "dropout": 0.4},
        "optim": {"name": "adamw", "lr": 0.01, "clip_norm": 1.0},
        "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "warmup_epochs": 0.5},
        "train": {"mixup_alpha": 0.4, "ema_decay": 0.9, "micro_batch": 3},
        "loss": {"label_smoothing": 0.1},
    },
    "after a probe": {
        "optim": {"name": "sgd", "lr": 3e-4, "momentum": 0.9},
        "schedule": {"name": "cosine", "warmup_epochs": 1},
        "train": {"mode": "probe_then_finetune", "probe_epochs": 3},
    },
}
DATA = toy_data(24, 8)


def config_of(mode: str, **train: Any) -> FitConfig:
    tables = MODES[mode]
    plan = {"epochs": EPOCHS, "batch_size": 6, **tables["train"], **train}
    return fit_config(**(tables | {"augment": AUGMENT, "train": plan}))


class StoppedContext(LocalContext):
    """A run that is asked to stop after so many steps."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder)
        self._left = after

    def asked(self) -> Request | None:
        self._left -= 1
        return "stop" if self._left == 0 else None


class KilledContext(LocalContext):
    """A run that is killed in the middle of a step; tells the steps that were taken."""

    def __init__(self, folder: Path, at: int = 0) -> None:
        self.steps: list[tuple[int, int]] = []
        self._at = at
        super().__init__(folder, on_event=self._note)

    def _note(self, event: Event) -> None:
        if event["kind"] == "step":
            self.steps.append((event["epoch"], event["step"]))
            if len(self.steps) == self._at:
                raise InterruptionError


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Progress]]:
    """Folder and course of a run without any checkpoint inside an epoch."""

    @cache
    def run(mode: str) -> tuple[Path, Progress]:
        folder = tmp_path_factory.mktemp("whole")
        return folder, fit(config_of(mode), DATA, LocalContext(folder))

    return run


def expect_equal_runs(found: tuple[Path, Progress], expected: tuple[Path, Progress]) -> None:
    """The same records, weights and trainer's state, bit for bit."""
    assert comparable(found[1].history) == comparable(expected[1].history)
    config = config_of("after a probe")
    folders = [folder for folder, _ in (found, expected)]
    states = [load_trainer(kept(folder, "latest")) for folder in folders]
    for state in states:
        del state["progress"]
    expect_equal_state(*states)
    if "ema" not in states[0]:
        for which in ("latest", "best"):
            models = [model_of(config, DATA, kept(folder, which)) for folder in folders]
            expect_equal_state(*(model.state_dict() for model in models))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("after", range(1, EPOCHS * STEPS + 1))
def test_a_run_stopped_after_any_step_goes_on_as_if_nothing_had_been(
    tmp_path: Path, undisturbed: Callable[[str], tuple[Path, Progress]], mode: str, after: int
) -> None:
    config = config_of(mode)
    stopped = fit(config, DATA, StoppedContext(tmp_path, after))
    assert stopped.epochs_done == (after - 1) // STEPS
    state = load_trainer(kept(tmp_path, "latest"))
    assert state["part"]["steps"] == (after - 1) % STEPS + 1
    context = KilledContext(tmp_path)
    resumed = fit(config, DATA, context)
    assert len(context.steps) == EPOCHS * STEPS - after
    expect_equal_runs((tmp_path, resumed), undisturbed(mode))


@settings(max_examples=12)
@given(
    every=st.integers(1, STEPS + 1),
    kills=st.lists(st.integers(1, EPOCHS * STEPS), min_size=1, max_size=3),
)
def test_kills_at_any_steps_repeat_no_more_than_an_interval_each(
    tmp_path_factory: pytest.TempPathFactory,
    undisturbed: Callable[[str], tuple[Path, Progress]],
    every: int,
    kills: list[int],
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    config = config_of("after a probe", checkpoint_steps=every)
    taken = 0
    for at in [*kills, 0]:
        context = KilledContext(folder, at)
        try:
            progress = fit(config, DATA, context)
        except InterruptionError:
            taken += len(context.steps)
        else:
            taken += len(context.steps)
            break
    expect_equal_runs((folder, progress), undisturbed("after a probe"))
    assert EPOCHS * STEPS <= taken <= EPOCHS * STEPS + len(kills) * min(every, STEPS)


def test_a_newer_checkpoint_inside_an_epoch_leaves_the_best_epochs(tmp_path: Path) -> None:
    config = config_of("after a probe", checkpoint_steps=1)
    with pytest.raises(InterruptionError):
        fit(config, DATA, KilledContext(tmp_path, at=STEPS + 3))
    assert kept(tmp_path, "best").name == "epoch-0001"
    assert kept(tmp_path, "latest").name == "epoch-0002-step-000002"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["epoch-0001", "epoch-0002-step-000002", "index.json"]


def test_checkpoints_inside_an_epoch_are_told_but_are_no_epochs(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path / "log"), plots=False)
    events: list[Event] = []
    reports: list[float] = []

    def take(event: Event) -> None:
        events.append(event)
        log(event)

    context = LocalContext(
        tmp_path / "run", "cpu", take, lambda epoch: reports.append(epoch["epoch"])
    )
    fit(config_of("after a probe", checkpoint_steps=3), DATA, context)
    kept = [(event["epoch"], event["step"]) for event in events if event["kind"] == "kept"]
    assert kept == [(1, 3), (2, 3)]
    assert [record["epoch"] for record in training_history(str(tmp_path / "log"))] == [1, 2]
    assert reports == [1, 2]


def test_an_epoch_that_is_cut_differently_now_begins_anew(tmp_path: Path) -> None:
    fit(config_of("after a probe"), DATA, StoppedContext(tmp_path, after=STEPS + 2))
    context = KilledContext(tmp_path)
    progress = fit(config_of("after a probe", batch_size=8), DATA, context)
    assert context.steps == [(2, step) for step in (1, 2, 3)]
    assert progress.epochs_done == EPOCHS


def test_an_epoch_of_other_images_begins_anew(tmp_path: Path) -> None:
    config = config_of("after a probe")
    fit(config, DATA, StoppedContext(tmp_path, after=2))
    again, relabelled = KilledContext(tmp_path), toy_data(24, 8)
    relabelled.train.labels_N[:2] = relabelled.train.labels_N[:2].flip(0)
    assert not relabelled.train.labels_N.equal(DATA.train.labels_N)
    fit(config, relabelled, again)
    assert again.steps[0] == (1, 1)


def test_a_run_does_not_go_on_in_another_number_format(tmp_path: Path) -> None:
    fit(config_of("after a probe"), DATA, StoppedContext(tmp_path, after=2))
    with pytest.raises(ConfigError, match="was trained in fp32, as its machine could"):
        fit(config_of("after a probe", precision="bf16"), DATA, LocalContext(tmp_path))


def test_epochs_are_compared_by_what_selects_them_now(tmp_path: Path) -> None:
    context = LocalContext(tmp_path)
    fit(config_of("after a probe", epochs=1, select_by="val_accuracy"), DATA, context)
    config = config_of("after a probe", epochs=4, select_by="val_loss")
    first, *others = fit(config, DATA, context).history
    lowest = first["val_loss"]
    for record in others:
        assert record["is_best"] == (record["val_loss"] < lowest)
        lowest = min(lowest, record["val_loss"])
    assert lowest < first["val_loss"]


class SpoiltContext(StoppedContext):
    """A run of a network that overflows on a white image."""

    def wrap(self, model: nn.Module) -> nn.Module:
        model.register_forward_hook(overflow_on_white)
        return model


def test_a_batch_left_out_stays_so_when_the_run_goes_on(tmp_path: Path) -> None:
    train = {"batch_size": 6, "non_finite": "skip"}
    config, data = fit_config(optim={"lr": 3e-4}, train=train), spoilt_data()
    whole = fit(config, data, SpoiltContext(tmp_path / "whole", 0)).history
    assert whole[0]["skipped_batches"] == 1
    for after in range(1, STEPS + 1):
        folder = tmp_path / str(after)
        fit(config, data, SpoiltContext(folder, after))
        found = fit(config, data, SpoiltContext(folder, 0)).history
        assert comparable(found) == comparable(whole)


@pytest.mark.slow
def test_all_ranks_leave_out_a_batch_that_one_of_them_cannot_take(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tables = {"train": {"batch_size": 8, "micro_batch": 2, "non_finite": "skip", "epochs": 2}}
    config = fit_config(optim={"lr": 3e-4}, **tables)
    first, second = fit_on_ranks({"run": config}, tmp_path, 2, spoilt=True)["run"]
    assert [record["skipped_batches"] for record in first] == [1, 1]
    told = capfd.readouterr().err
    assert told.count("the loss is not finite; images: ") == 2
    assert told.count("the loss of another worker's images is not finite") == 2
    assert "gradient" not in told
    assert comparable(first) == comparable(second)
    alone = fit(config, spoilt_data(), SpoiltContext(tmp_path / "alone", 0)).history
    expect_close(first, alone)


PLAIN = fit_config(
    model={"dropout": 0.3},
    augment=AUGMENT,
    optim={"name": "adam", "lr": 3e-4, "clip_norm": 5.0},
    schedule={"name": "plateau", "patience": 0},
    train={"epochs": 2, "batch_size": 8, "micro_batch": 2, "mixup_alpha": 0.3},
)
AVERAGED = fit_config(
    model={"architecture": "shufflenet_v2_x0_5"},
    optim={"lr": 0.01},
    train={"epochs": 2, "batch_size": 8, "micro_batch": 4, "ema_decay": 0.8},
)


# Sums of another number of ranks are rounded otherwise: an image that is as much of one class as of
# another may change its class.
LOSSES = ("lr", "train_loss", "val_loss")


def expect_close(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], keys: Sequence[str] = LOSSES
) -> None:
    assert len(found) == len(expected)
    for record, whole in zip(found, expected, strict=True):
        for key in keys:
            assert record[key] == pytest.approx(whole[key], rel=1e-4, abs=1e-4), key
        for key, rows in (("train_accuracy", 24), ("val_accuracy", 9)):
            assert record[key] == pytest.approx(whole[key], abs=1 / rows + 1e-4), key


@pytest.mark.slow
def test_any_number_of_ranks_goes_on_inside_an_epoch(tmp_path: Path) -> None:
    data, step = toy_data(24, 9), 5
    whole = fit_on_ranks({"plain": PLAIN, "averaged": AVERAGED}, tmp_path / "whole", 2)
    alone = fit(PLAIN, data, LocalContext(tmp_path / "alone")).history
    two = tmp_path / "two"
    fit_on_ranks({"plain": PLAIN, "averaged": AVERAGED}, two, 2, stop_after=step)
    for name in ("plain", "averaged"):
        state = load_trainer(kept(two / name, "latest"))
        assert (state["progress"]["epochs_done"], state["part"]["steps"]) == (1, step - 3)
        # Eight images in each of the epoch's steps, over both ranks.
        assert state["part"]["confusion"].sum() == 8 * (step - 3)
    shutil.copytree(two / "plain", tmp_path / "fewer")
    fit(PLAIN, data, StoppedContext(two / "more", step))

    configs = {"plain": PLAIN, "averaged": AVERAGED, "more": PLAIN}
    found = fit_on_ranks(configs, two, 2)
    for name in ("plain", "averaged"):
        expect_close(found[name][0], whole[name][0], (*LOSSES, "train_accuracy", "val_accuracy"))
    expect_close(found["more"][0], alone)
    expect_close(fit(PLAIN, data, LocalContext(tmp_path / "fewer")).history, alone)
    for ranks in found.values():
        assert comparable(ranks[0]) == comparable(ranks[1])
