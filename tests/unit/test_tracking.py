"""Runs and trials in a real MLflow store: a SQLite file."""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from fetal_core.errors import ConfigError, StorageError
from fetal_core.recipe import Recipe
from mlflow_runs import FOLDER, PARAMS, epoch, points, runs
from ray_jobs.tracked_run import TrackedRun
from ray_jobs.tracking import MlflowTracker, Tracker, tracker

pytestmark = pytest.mark.usefixtures("mlflow_experiment")

# Runs a whole life of a run and tells every host that the process has turned to.
NETWORK = """
import json, sys
called = []
def hook(name, args):
    if name in ("socket.connect", "socket.getaddrinfo"):
        called.append(repr(args[1:] if name == "socket.connect" else args))
sys.addaudithook(hook)
from ray_jobs.tracking import tracker
tracking = tracker()
run_id = tracking.begin("/data/runs/quiet", "quiet", {"a": 1})
tracking.epoch(run_id, {"epoch": 1, "loss": 0.5})
tracking.end(run_id, "finished")
from mlflow.telemetry import get_telemetry_client
print(json.dumps({"called": called, "client": str(get_telemetry_client())}))
"""


@contextmanager
def broken(store: Path, table: str = "metrics") -> Iterator[None]:
    """The store misses a table while the block lasts."""
    with closing(sqlite3.connect(store)) as database:
        database.execute(f"ALTER TABLE {table} RENAME TO away")
        try:
            yield
        finally:
            database.execute(f"ALTER TABLE away RENAME TO {table}")


def test_a_run_has_its_settings_and_every_number_of_every_epoch() -> None:
    settings = Recipe().model_dump(mode="json")
    tracking = tracker()
    run_id = tracking.begin(FOLDER, "one", settings | {"labels": {"Plane (TV)": None, "x": [1]}})
    for number in (1, 2):
        tracking.epoch(run_id, {"kind": "epoch", "flag": True, **epoch(number)})
    tracking.end(run_id, "finished", {"best_val_loss": 0.5})
    (run,) = runs()
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "one", "FINISHED")
    assert run.data.tags["fetal.status"] == "finished"
    assert run.data.tags["fetal.folder"] == FOLDER
    params = run.data.params
    assert json.loads(params["optim.lr"]) == settings["optim"]["lr"]
    assert params["optim.name"] == settings["optim"]["name"]
    assert (params["labels.Plane _TV_"], params["labels.x"]) == ("null", "[1]")
    assert set(run.data.metrics) == {"epoch", "val_loss", "is_best", "best_val_loss"}
    assert points(run_id, "val_loss") == [(1, 1.0), (2, 0.5)]


def test_more_than_a_request_takes_is_sent_in_parts() -> None:
    tracking = tracker()
    many = {f"p{number}": "x" * 7000 for number in range(150)}
    run_id = tracking.begin(FOLDER, "many", many)
    tracking.epoch(run_id, {"epoch": 1, **{f"m{number}": number for number in range(1500)}})
    (run,) = runs()
    assert run.data.params == dict.fromkeys(many, "x" * 6000)
    assert run.data.metrics == {"epoch": 1, **{f"m{number}": number for number in range(1500)}}


def test_trials_lie_under_their_sweep() -> None:
    tracking = tracker()
    sweep = tracking.begin("/data/sweep", "sweep", {"trials": 3})
    ends = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    ids = {
        status: tracking.begin(f"/data/sweep/{status}", status, {"lr": 0.1}, sweep)
        for status in ends
    }
    for number, (status, run_id) in enumerate(ids.items(), start=1):
        tracking.epoch(run_id, epoch(number))
        tracking.end(run_id, status)  # type: ignore[arg-type]
    tracking.end(sweep, "interrupted")
    found = {run.info.run_name: run for run in runs()}
    assert found["sweep"].info.status == "KILLED"
    assert "mlflow.parentRunId" not in found["sweep"].data.tags
    for number, (status, shown) in enumerate(ends.items(), start=1):
        trial = found[status]
        assert trial.data.tags["mlflow.parentRunId"] == sweep
        assert (trial.info.status, trial.data.tags["fetal.status"]) == (shown, status)
        assert trial.data.metrics["epoch"] == number


def test_a_killed_run_continues_in_another_process() -> None:
    first, second = tracker(), tracker()
    run_id = first.begin(FOLDER, "one", PARAMS)
    first.epoch(run_id, epoch(1))
    elsewhere = PARAMS | {"cluster": {"workers": 4}}
    assert second.begin(FOLDER, "one", elsewhere) == run_id
    for number in (1, 2):
        second.epoch(run_id, epoch(number))
    second.end(run_id, "finished")
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["cluster.workers"] == "1"
    assert points(run_id, "epoch") == [(1, 1), (2, 2)]


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_was_cut_short_runs_again(status: Any) -> None:
    tracking = tracker()
    run_id = tracking.begin(FOLDER, "one", PARAMS)
    tracking.end(run_id, status)
    assert tracking.begin(FOLDER, "one", PARAMS) == run_id
    assert [run.info.status for run in runs()] == ["RUNNING"]
    assert runs()[0].data.tags["fetal.status"] == "running"


def test_what_has_ended_or_differs_is_another_run() -> None:
    tracking = tracker()
    ids = [tracking.begin(FOLDER, "one", PARAMS)]
    ids.append(tracking.begin(FOLDER, "one", PARAMS, resumes=False))
    ids.append(tracking.begin(FOLDER, "one", {"optim": {"lr": 0.02}}))
    ids.append(tracking.begin(FOLDER + "2", "two", PARAMS))
    tracking.end(ids[1], "finished")
    ids.append(tracking.begin(FOLDER, "one", PARAMS))
    assert len(set(ids)) == 5


def test_a_store_that_fails_during_a_run_costs_nothing(
    mlflow_db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = MlflowTracker(
        f"sqlite:///{mlflow_db}", os.environ["MLFLOW_EXPERIMENT_NAME"], pause_s=0
    )
    run_id = tracking.begin(FOLDER, "one", PARAMS)
    tracking.epoch(run_id, epoch(1))
    with broken(mlflow_db):
        tracking.epoch(run_id, epoch(2))
        tracking.epoch(run_id, epoch(3))
    assert [record.levelno for record in caplog.records if record.name == "ray_jobs.tracking"] == [
        logging.WARNING
    ]
    tracking.epoch(run_id, epoch(4))
    assert [step for step, _ in points(run_id, "val_loss")] == [1, 2, 3, 4]


def test_epochs_wait_while_a_failed_store_is_left_alone(mlflow_db: Path) -> None:
    tracking = tracker()
    run_id = tracking.begin(FOLDER, "one", PARAMS)
    with broken(mlflow_db):
        tracking.epoch(run_id, epoch(1))
    tracking.epoch(run_id, epoch(2))
    assert points(run_id, "val_loss") == []
    tracking.end(run_id, "finished")
    assert [step for step, _ in points(run_id, "val_loss")] == [1, 2]


def test_a_store_that_fails_at_the_end_raises_nothing(mlflow_db: Path, tmp_path: Path) -> None:
    with TrackedRun(tracker(), FOLDER, PARAMS, resumes=False) as run, broken(mlflow_db):
        run({"kind": "epoch", **epoch(1)})
    tracking = tracker()
    tracked = tracking.begin(FOLDER, "one", PARAMS)
    with broken(mlflow_db, "runs"):
        assert tracking.begin(str(tmp_path), "trial", {}, parent=tracked) == ""
        tracking.epoch("", epoch(1))
        tracking.end("", "failed")
        tracking.end(tracked, "finished", {"best_val_loss": 1.0})
        tracking.amend(FOLDER, PARAMS, {"test_accuracy": 1.0})
        with pytest.raises(StorageError, match="no such table"):
            tracking.begin(FOLDER, "one", PARAMS)


@pytest.mark.timeout(100)
def test_a_store_that_does_not_answer_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for uri, reason in {
            f"http://me:secret@127.0.0.1:{port}": "Max retries exceeded",
            f"sqlite:///{tmp_path}": "unable to open database file",
            "nonsense": "filesystem tracking backend",
        }.items():
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            with pytest.raises(StorageError, match=reason) as caught:
                tracker()
            assert "correct MLFLOW_TRACKING_URI, or unset it" in str(caught.value)
            assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_an_error() -> None:
    tracker()
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    name = os.environ["MLFLOW_EXPERIMENT_NAME"]
    (found,) = client.search_experiments(ViewType.ACTIVE_ONLY, filter_string=f"name = '{name}'")
    client.delete_experiment(found.experiment_id)
    with pytest.raises(StorageError, match="has been deleted"):
        tracker()


def test_a_store_without_its_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ConfigError, match=r"mlflow is not installed.*fetal-planes\[mlflow\]"):
        tracker()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert type(tracker()) is Tracker


def test_nothing_is_sent_to_other_hosts(tmp_path: Path) -> None:
    # MLflow itself is silent under tests and continuous integration.
    kept = {"PATH", "HOME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "PYTHONPATH"}
    environment = {key: value for key, value in os.environ.items() if key in kept}
    done = subprocess.run(
        [sys.executable, "-c", NETWORK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == {"called": [], "client": "None"}
