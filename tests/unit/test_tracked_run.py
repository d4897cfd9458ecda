"""Training runs in a real MLflow store: a SQLite file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from builders import InterruptedContext, InterruptionError, fit_config, toy_data
from fetal_core.recipe import Recipe
from fetal_core.run_context import LocalContext
from fetal_core.train import fit
from mlflow_runs import FOLDER, PARAMS, epoch, points, runs
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.tracked_run import TrackedRun, headline, run_params
from ray_jobs.tracking import tracker

pytestmark = pytest.mark.usefixtures("mlflow_experiment")


def test_without_a_store_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value in ("", None):
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        if value is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
        with TrackedRun(tracker(), FOLDER, PARAMS, resumes=False) as run:
            run({"kind": "epoch", **epoch(1)})
            run.finish(epoch(1))
        tracker().amend(FOLDER, PARAMS, {"test_accuracy": 1.0})
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_training_has_each_epoch_once(tmp_path: Path) -> None:
    config = fit_config(
        optim={"lr": 1e-3}, train={"mode": "probe_then_finetune", "probe_epochs": 2, "epochs": 3}
    )
    killed_run = TrackedRun(tracker(), FOLDER, PARAMS, resumes=False)
    killed = InterruptedContext(tmp_path / "checkpoints", after=1, on_event=killed_run)
    with pytest.raises(InterruptionError), killed_run:
        fit(config, toy_data(8, 4), killed)
    assert [run.info.status for run in runs()] == ["FAILED"]

    with TrackedRun(tracker(), FOLDER, PARAMS, resumes=True) as again:
        progress = fit(config, toy_data(8, 4), LocalContext(tmp_path / "checkpoints", "cpu", again))
        best = progress.history[progress.best_epoch - 1]
        again.finish(best)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    expected = [(record["epoch"], record["val_loss"]) for record in progress.history]
    assert points(run.info.run_id, "val_loss") == expected
    assert [step for step, _ in points(run.info.run_id, "probe/val_loss")] == [1, 2]
    assert run.data.metrics["best_val_macro_f1"] == best["val_macro_f1"]
    assert run.data.metrics["best_epoch"] == best["epoch"]


def test_ctrl_c_is_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt), TrackedRun(tracker(), FOLDER, PARAMS, resumes=False):
        raise KeyboardInterrupt
    assert [run.data.tags["fetal.status"] for run in runs()] == ["interrupted"]


def test_epochs_before_tracking_was_switched_on_are_added() -> None:
    with TrackedRun(tracker(), FOLDER, PARAMS, resumes=True) as run:
        run({"kind": "start", "history": [epoch(1), epoch(2)]})
        run({"kind": "epoch", **epoch(3)})
    assert [step for step, _ in points(runs()[0].info.run_id, "val_loss")] == [1, 2, 3]


def test_an_evaluation_is_added_to_the_run_of_its_folder(tmp_path: Path) -> None:
    recipe, report = Recipe(), tmp_path / "report.html"
    report.write_text("<p>fine</p>")
    params = run_params(recipe, "abc", ClusterConfig(workers=2))
    with TrackedRun(tracker(), str(tmp_path), params, resumes=False) as run:
        run.finish(epoch(1))
    scores: dict[str, Any] = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), 0.75)
    figures = headline(
        scores | {"auroc_macro": None, "images": 9, "intervals": {"accuracy": [0.5, 0.875]}}
    )
    files = (str(report), str(tmp_path / "missing.json"), "s3://bucket/metrics.json")
    tracker().amend(str(tmp_path), run_params(recipe, "abc"), figures, files)
    tracker().amend(str(tmp_path), run_params(recipe, "other"), {"test_accuracy": 0.0})
    (found,) = runs()
    assert {k: v for k, v in found.data.metrics.items() if k.startswith("test_")} == {
        "test_accuracy": 0.75,
        "test_accuracy_low": 0.5,
        "test_accuracy_high": 0.875,
        "test_balanced_accuracy": 0.75,
        "test_macro_f1": 0.75,
    }
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (file,) = client.list_artifacts(found.info.run_id)
    assert (file.path, file.file_size) == ("report.html", report.stat().st_size)
