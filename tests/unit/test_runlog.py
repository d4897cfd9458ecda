"""The records of a run on disk, over interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from builders import InterruptedContext, InterruptionError, fit_config, toy_data
from fetal_core.run_context import LocalContext
from fetal_core.runlog import METRICS, RunLog, read_history
from fetal_core.train import fit


def epoch(number: int, **values: float) -> dict[str, Any]:
    return {"epoch": number, "val_loss": 1 / number, "is_best": 1.0, **values}


def test_epochs_are_appended_as_json_lines(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path))
    log({"kind": "start", "history": []})
    for number in (1, 2):
        log({"kind": "step", "epoch": number, "step": 1, "loss": 0.1})
        log({"kind": "epoch", **epoch(number)})
        assert read_history(str(tmp_path)) == [epoch(n) for n in range(1, number + 1)]
    log.close()
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2


def test_resumed_run_continues_where_its_checkpoint_is(tmp_path: Path) -> None:
    """The process died after it had logged epoch 3 and before the checkpoint of it was kept."""
    first = RunLog(str(tmp_path))
    first({"kind": "start", "history": []})
    for number in (1, 2, 3):
        first({"kind": "epoch", **epoch(number, seconds=1.0)})
    first.close()
    history = read_history(str(tmp_path))[:2]
    second = RunLog(str(tmp_path))
    second({"kind": "start", "history": history})
    second({"kind": "epoch", **epoch(3, seconds=2.0)})
    second.close()
    assert read_history(str(tmp_path)) == [*history, epoch(3, seconds=2.0)]


def test_plots_show_every_number_of_every_epoch(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path))
    for number in (1, 2):
        log({"kind": "epoch", **epoch(number)})
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in board.Scalars("val_loss")]
    assert points == [(1, 1.0), (2, 0.5)]


def test_closing_a_log_without_records_writes_nothing(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path))
    log({"kind": "start", "history": []})
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert read_history(str(tmp_path)) == []


def test_records_of_the_probe_stay_before_those_of_fine_tuning(tmp_path: Path) -> None:
    config = fit_config(
        optim={"lr": 1e-3}, train={"mode": "probe_then_finetune", "probe_epochs": 2, "epochs": 3}
    )
    run, checkpoints = tmp_path / "run", tmp_path / "checkpoints"
    killed = InterruptedContext(checkpoints, after=1, on_event=RunLog(str(run)))
    with pytest.raises(InterruptionError):
        fit(config, toy_data(8, 4), killed)
    assert [record["epoch"] for record in read_history(str(run))] == [1, 2, 1]
    resumed = LocalContext(checkpoints, on_event=RunLog(str(run)))
    progress = fit(config, toy_data(8, 4), resumed)
    found = read_history(str(run))
    assert [(r.get("phase"), r["epoch"]) for r in found] == [
        ("probe", 1),
        ("probe", 2),
        (None, 1),
        (None, 2),
        (None, 3),
    ]
    assert found[2:] == progress.history


def test_a_probe_that_is_run_again_replaces_its_records(tmp_path: Path) -> None:
    for losses in ((0.6, 0.5), (0.4,)):
        log = RunLog(str(tmp_path))
        for loss in losses:
            log({"kind": "probe", "features_s": 1.0, "history": [epoch(1, train_loss=loss)]})
        log.close()
    assert read_history(str(tmp_path)) == [{"phase": "probe", **epoch(1, train_loss=0.4)}]
