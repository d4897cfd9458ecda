"""Sweeps on Ray Tune: what they leave behind, and that they outlive failures and kills."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from cohorts import run
from fetal_core import storage
from fetal_core.bundle import Bundle
from fetal_core.config import merge
from fetal_core.errors import ConfigError
from fetal_core.recipe import Recipe
from fetal_core.scoring import load_predictions
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.evaluate import evaluate_run
from ray_jobs.prepare import PrepareOutcome
from ray_jobs.tune import tune
from ray_jobs.tune_best import best_bundle, retrained_bundle
from ray_jobs.tune_report import SweepOutcome
from sweeps import QUICK, SPACE, job, sweep_of

pytestmark = pytest.mark.ray

LEARNS = merge(
    QUICK,
    {
        "model": {"architecture": "resnet18"},
        "optim": {"name": "adamw", "lr": 2e-3},
        "augment": {"speckle": 0},
        "train": {"epochs": 10},
    },
)
ASHA: dict[str, Any] = {
    "algorithm": "grid",
    "space": {"optim.lr": {"grid": [1e-10]}, "train.seed": {"grid": [1, 2, 3, 4, 5]}},
    "grace_epochs": 8,
    "keep_checkpoints": 2,
}


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0))


@pytest.fixture(scope="module")
def swept(prepared: PrepareOutcome, tmp_path_factory: pytest.TempPathFactory) -> SweepOutcome:
    """The recipe and five networks that stay as they began, the worse of which ASHA stops."""
    return sweep_of(prepared, tmp_path_factory.mktemp("sweeps") / "asha", job(ASHA, LEARNS))


def test_a_sweep_ends_with_the_best_trials_model(swept: SweepOutcome) -> None:
    assert [trial.number for trial in swept.trials] == [0, 1, 2, 3, 4, 5]
    assert {trial.status for trial in swept.trials} <= {"finished", "stopped"}
    best = swept.best
    assert best is not None
    scores = [trial.score("val_macro_f1") or 0.0 for trial in swept.trials]
    assert best.score("val_macro_f1") == max(scores) >= scores[0]
    info = Bundle.load(swept.sweep.best.bundle_uri).info
    assert info.metrics["validation"] == best.best
    assert Recipe(**info.recipe) == swept.sweep.recipe(best)
    assert swept.trials[0].assignment == {}, "the first trial is the recipe as it stands"


def test_asha_stops_trials_at_its_rungs_and_spends_fewer_epochs(swept: SweepOutcome) -> None:
    stopped = [trial for trial in swept.trials if trial.status == "stopped"]
    assert stopped
    assert {len(trial.history) for trial in stopped} == {8}
    for trial in swept.trials:
        if trial.status == "finished":
            assert len(trial.history) == trial.epochs == 10


def test_only_the_best_checkpoints_stay(swept: SweepOutcome) -> None:
    scored = sorted(swept.trials, key=lambda t: (-(t.score("val_macro_f1") or 0), t.number))
    kept = {
        trial.number
        for trial in swept.trials
        if storage.exists(swept.sweep.trial(trial.number).checkpoints.uri)
    }
    assert kept == {trial.number for trial in scored[:2]}


def test_the_cluster_is_free_after_stopped_trials(swept: SweepOutcome) -> None:
    assert any(trial.status == "stopped" for trial in swept.trials)
    expected = ray.cluster_resources()["CPU"]
    deadline = time.monotonic() + 60
    while free_cpus() < expected and time.monotonic() < deadline:
        time.sleep(0.5)
    assert free_cpus() == expected


def test_the_best_trial_is_evaluated_like_any_run(swept: SweepOutcome) -> None:
    outcome = evaluate_run(swept.sweep.best.uri, ClusterConfig())
    assert outcome.evaluation.images > 0
    assert Path(swept.sweep.best.report_uri).exists()


def test_report_and_figures_tell_the_same(swept: SweepOutcome) -> None:
    page = Path(swept.sweep.report_uri).read_text()
    figures = json.loads(Path(swept.sweep.figures_uri).read_text())
    assert swept.best is not None
    assert figures["best_trial"] == swept.best.number
    assert figures["epochs_spent"] == sum(len(trial.history) for trial in swept.trials)
    assert "optim.lr" in page
    assert "<svg" in page


def test_best_writes_a_bundle_and_retrains_on_more_rows(
    swept: SweepOutcome, prepared: PrepareOutcome, tmp_path: Path
) -> None:
    trial = best_bundle(swept.sweep.uri, str(tmp_path / "best"))
    assert swept.best is not None
    assert trial.number == swept.best.number
    plain = Bundle.load(str(tmp_path / "best"))
    with pytest.raises(ConfigError, match="lies there already"):
        best_bundle(swept.sweep.uri, str(tmp_path / "best"))

    events: list[dict[str, Any]] = []
    out = str(tmp_path / "all")
    retrained_bundle(swept.sweep.uri, out, ClusterConfig(), events.append)
    again = Bundle.load(out)
    assert again.info.metrics["retrained_on"] == {"parts": ["train", "val"]}
    assert again.info.metrics["validation"] == plain.info.metrics["validation"]
    start_event = next(event for event in events if event["kind"] == "start")
    rows = prepared.index.rows("train") + prepared.index.rows("val")
    assert start_event["steps"] == -(-rows // 8)
    assert start_event["epochs"] == (swept.best.best or {})["epoch"]
    changed = [
        key
        for key, value in again.model.state_dict().items()
        if not value.equal(plain.model.state_dict()[key])
    ]
    assert changed
    assert not list(tmp_path.glob("all.training*"))


def test_the_command_writes_the_best_bundle_and_retrains(
    swept: SweepOutcome, tmp_path: Path
) -> None:
    best = ("best", swept.sweep.uri, "--out")
    for words in (("plain",), ("again", "--retrain")):
        code, output = run("tune", *best, *words, cwd=tmp_path)
        assert code == 0, output
        assert swept.best is not None
        assert f"trial {swept.best.number}'s model: {tmp_path / words[0]}" in output
    assert {folder.name for folder in tmp_path.iterdir()} == {"plain", "again"}
    plain, again = (Bundle.load(str(tmp_path / name)).info for name in ("plain", "again"))
    assert "retrained_on" not in plain.metrics
    assert again.metrics["retrained_on"] == {"parts": ["train", "val"]}
    code, output = run("tune", *best, "plain", "--retrain", cwd=tmp_path)
    assert (code, "a model lies there already" in output) == (2, True), output


def test_the_test_part_is_not_read(prepared: PrepareOutcome, tmp_path: Path) -> None:
    copy = tmp_path / "prepared"
    shutil.copytree(prepared.prepared.uri, copy)
    for part in ("test", "calib"):
        shutil.rmtree(copy / "shards" / part)
    search = {"trials": 2, "space": {"optim.lr": {"choice": [0.01, 0.001]}}, "scheduler": "none"}
    quick = merge(QUICK, {"train": {"epochs": 1}})
    outcome = tune(str(copy), str(tmp_path / "sweep"), job(search, quick), 2)
    assert [trial.status for trial in outcome.trials] == ["finished", "finished"]


@pytest.mark.parametrize("scheduler", ["asha", "none"])
def test_a_diverging_trial_is_told_and_the_others_go_on(
    prepared: PrepareOutcome, tmp_path: Path, scheduler: str
) -> None:
    search = {
        "algorithm": "grid",
        "space": {"optim.lr": {"grid": [1e-3, 1e12]}},
        "include_default": False,
        "scheduler": scheduler,
    }
    outcome = sweep_of(prepared, tmp_path / "sweep", job(search))
    good, bad = outcome.trials
    assert (good.status, bad.status) == ("finished", "failed")
    assert "not finite" in bad.reason
    assert outcome.best is not None
    assert outcome.best.number == 0
    assert "not finite" in Path(outcome.sweep.report_uri).read_text()


@pytest.mark.heavy
def test_two_workers_a_trial_behave_like_one(prepared: PrepareOutcome, tmp_path: Path) -> None:
    search = {"trials": 2, "space": {"optim.lr": {"choice": [0.01, 0.02]}}, "scheduler": "none"}
    settings = merge(QUICK, {"train": {"epochs": 2, "batch_size": 6, "micro_batch": 3}})
    curves = {}
    for workers in (1, 2):
        wanted = job(search, settings, cluster={"workers": workers})
        outcome = sweep_of(prepared, tmp_path / str(workers), wanted, at_once=1)
        assert [trial.status for trial in outcome.trials] == ["finished", "finished"]
        assert Bundle.load(outcome.sweep.best.bundle_uri).info.classes == prepared.index.classes
        curves[workers] = [[r["val_loss"] for r in trial.history] for trial in outcome.trials]
    for one, two in zip(curves[1], curves[2], strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_probes_share_the_features_of_one_backbone(
    prepared: PrepareOutcome, tmp_path: Path
) -> None:
    search = {
        "algorithm": "tpe",
        "trials": 6,
        "space": {"optim.lr": {"loguniform": [1e-3, 1.0]}, "optim.weight_decay": SPACE["optim.lr"]},
    }
    probe = {"train": {"mode": "probe", "epochs": 5}, "optim": {"name": "adam"}}
    outcome = sweep_of(prepared, tmp_path / "sweep", job(search, merge(QUICK, probe)))
    assert [trial.status for trial in outcome.trials] == ["finished"] * 6
    rates = [trial.assignment.get("optim.lr") for trial in outcome.trials[1:]]
    assert len(set(rates)) == 5
    assert all(len(trial.history) == 5 for trial in outcome.trials)


@pytest.mark.heavy
def test_arms_end_in_verdicts(prepared: PrepareOutcome, tmp_path: Path) -> None:
    search = {
        "algorithm": "grid",
        "scheduler": "none",
        "space": {"train.seed": {"grid": [0, 1]}},
        "arms": {
            "sgd": {"settings": {"optim.name": "sgd"}, "space": {"optim.lr": {"grid": [0.01]}}},
            "adam": {"settings": {"optim.name": "adam"}, "space": {"optim.lr": {"grid": [0.001]}}},
        },
    }
    claim = {"claim": "Adam beats SGD", "arm": "adam", "other": "sgd"}
    quick = merge(QUICK, {"train": {"epochs": 2}})
    assert sweep_of(prepared, tmp_path / "sweep", job(search, quick)).study is None
    # Hypotheses may come to mind when all trials have ended.
    wanted = job(search, quick, study={"hypotheses": [claim], "resamples": 100})
    outcome = sweep_of(prepared, tmp_path / "sweep", wanted)
    assert outcome.study is not None
    (found,) = outcome.study.hypotheses
    assert found.verdict in ("supported", "refuted", "undecided")
    assert "Adam beats SGD" in Path(outcome.sweep.report_uri).read_text()
    for trial in outcome.trials:
        scores = load_predictions(outcome.sweep.trial(trial.number).predictions_uri("val"))
        accuracy = (scores.logits_NK.argmax(axis=1) == scores.labels_N).mean()
        assert accuracy == pytest.approx((trial.best or {})["val_accuracy"])


def test_trials_are_logged_below_their_sweep(
    prepared: PrepareOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    search = {"trials": 2, "space": {"optim.lr": {"choice": [0.01, 0.001]}}, "scheduler": "none"}
    quick = merge(QUICK, {"train": {"epochs": 2}})
    outcome = sweep_of(prepared, tmp_path / "sweep", job(search, quick))
    # Nothing is left to do, and nothing to log.
    sweep_of(prepared, tmp_path / "sweep", job(search, quick))
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "fetal-planes"]
    found = client.search_runs([experiment.experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert set(runs) == {"sweep", "sweep-0000", "sweep-0001"}
    assert len(found) == 3
    parent = runs["sweep"].info.run_id
    for trial in outcome.trials:
        logged = runs[f"sweep-{trial.number:04d}"]
        assert logged.data.tags["mlflow.parentRunId"] == parent
        points = client.get_metric_history(logged.info.run_id, "val_accuracy")
        assert [p.value for p in points] == [r["val_accuracy"] for r in trial.history]
    best = outcome.best
    assert best is not None
    assert runs["sweep"].data.metrics["best_val_macro_f1"] == best.score("val_macro_f1")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_other_settings_need_another_name(swept: SweepOutcome, prepared: PrepareOutcome) -> None:
    fewer = job({**ASHA, "trials": 3}, LEARNS)
    with pytest.raises(ConfigError, match="it can only grow"):
        sweep_of(prepared, Path(swept.sweep.uri), fewer)
    other = job({**ASHA, "seed": 5}, LEARNS)
    with pytest.raises(ConfigError, match=r"search\.seed: 0 -> 5"):
        sweep_of(prepared, Path(swept.sweep.uri), other)
