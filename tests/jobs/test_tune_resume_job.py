"""Sweeps that are interrupted, killed or started wrongly."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cohorts import flags, interrupt_when, kill_when, recipe, run
from fetal_core import storage
from fetal_core.config import merge
from fetal_core.search import candidates
from fetal_core.trials import Trial
from ray_jobs.prepare import PrepareOutcome
from ray_jobs.sweep import Sweep
from sweeps import QUICK, job, sweep_of

pytestmark = pytest.mark.ray


def test_a_lost_process_is_replaced_and_its_trial_goes_on(
    prepared: PrepareOutcome, tmp_path: Path
) -> None:
    search = {
        "algorithm": "grid",
        "space": {"optim.lr": {"grid": [0.01]}},
        "include_default": False,
        "scheduler": "none",
    }
    quick = merge(QUICK, {"train": {"epochs": 40}})
    folder = Sweep(str(tmp_path / "sweep")).trial(0)
    killed: list[int] = []

    def kill_once() -> None:
        while not killed:
            time.sleep(0.05)
            if storage.exists(folder.trial_uri) and len(folder.load().history) >= 2:
                killed.extend(trial_processes())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    outcome = sweep_of(prepared, tmp_path / "sweep", job(search, quick))
    assert len(killed) == 1
    (trial,) = outcome.trials
    assert trial.status == "finished"
    assert [record["epoch"] for record in trial.history] == list(range(1, 41))


def trial_processes() -> list[int]:
    """Processes that a Ray Tune trial trains in."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if status.read_bytes().startswith(b"ray::ImplicitFunc"):
                found.append(int(status.parent.name))
    return found


@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_with_the_same_trials(
    prepared: PrepareOutcome, tmp_path: Path
) -> None:
    """Killed with all its processes after a third of the trials, then resumed by name."""
    space = tmp_path / "space.toml"
    space.write_text(
        '[search]\ntrials = 6\nscheduler = "none"\n'
        '[search.space."optim.lr"]\nloguniform = [1e-4, 1e-2]\n'
    )
    settings = flags(recipe(**merge(QUICK, {"train": {"epochs": 3}})))
    command = ("tune", prepared.prepared.uri, "--config", str(space), *settings)
    sweep = Sweep(str(tmp_path / "runs/sweep"))
    kill_when(
        lambda: sum(trial.status == "finished" for trial in sweep.trials()) >= 2,
        *command,
        cwd=tmp_path,
    )
    killed = {trial.number: trial for trial in sweep.trials()}
    assert len(killed) < 6 or any(trial.status == "unfinished" for trial in killed.values())
    finished = {n: results(sweep, n) for n, t in killed.items() if t.status == "finished"}

    code, output = run("tune", "--resume", "sweep", cwd=tmp_path)
    assert code == 0, output
    assert "Traceback" not in output
    after = sweep.trials()
    planned = [candidate.assignment for candidate in planned_candidates(sweep)]
    assert [trial.assignment for trial in after] == planned
    assert all(trial.status == "finished" and len(trial.history) == 3 for trial in after)
    assert {number: results(sweep, number) for number in finished} == finished
    for number, trial in killed.items():
        assert without_times(after[number])[: len(trial.history)] == without_times(trial)


def planned_candidates(sweep: Sweep) -> list[Any]:
    _, wanted = sweep.settings()
    return candidates(wanted.search, wanted.recipe())


def results(sweep: Sweep, number: int) -> tuple[bytes, int]:
    """What a finished trial has written, and when."""
    file = Path(sweep.trial(number).uri, "metrics.jsonl")
    return file.read_bytes(), file.stat().st_mtime_ns


def without_times(trial: Trial) -> list[dict[str, Any]]:
    timed = {"train_s", "epoch_s", "images_per_s"}
    return [{k: v for k, v in record.items() if k not in timed} for record in trial.history]


@pytest.mark.heavy
def test_ctrl_c_is_told(prepared: PrepareOutcome, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text('[search]\ntrials = 3\n[search.space."optim.lr"]\nuniform = [0.001, 0.1]\n')
    settings = flags(recipe(**merge(QUICK, {"train": {"epochs": 300}})))
    command = ("tune", prepared.prepared.uri, "--config", str(space), *settings)
    sweep = Sweep(str(tmp_path / "runs/sweep"))
    code, output = interrupt_when(
        lambda: any(trial.history for trial in sweep.trials()), *command, cwd=tmp_path
    )
    assert code == 130, output
    assert "interrupted; run the same command again to continue" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config", "sweeep"), "no configuration of this name; did you mean 'sweep'"),
        (("--resume", "nothing"), "not a sweep"),
        ((), "search.space: empty"),
        (("--config", "sweep", "--max-concurrent", "0"), "at least one"),
        (("--config", "sweep", "--search.grace-epochs", "99"), "nothing to stop"),
    ],
)
def test_a_wrong_command_is_told_and_leaves_nothing(
    prepared: PrepareOutcome, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, output = run("tune", prepared.prepared.uri, *words, cwd=tmp_path)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())
