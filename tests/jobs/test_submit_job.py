"""Stages as jobs of a real cluster with a job server that asks for a token."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cohorts import flags, kill, recipe
from fetal_core.runlog import training_history
from job_server import JobServer, finished, job_server

pytestmark = pytest.mark.ray

EPOCHS = 12
SETTINGS = recipe(train={"epochs": EPOCHS, "batch_size": 8})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    with job_server(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def prepared(server: JobServer, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cohort that a job has prepared."""
    out = tmp_path_factory.mktemp("work") / "prepared"
    words = ["prepare", str(cohort), "--out", str(out), *flags(SETTINGS)]
    code, output = server.run("submit", *words)
    assert code == 0, output
    assert f"prepared {out}: train " in output
    return str(out)


def job_of(output: str) -> str:
    found = re.search(r"job (\S+) submitted", output)
    assert found is not None, output
    return found[1]


def test_a_job_that_fails_gives_its_exit_code_and_one_message(
    server: JobServer, tmp_path: Path
) -> None:
    nothing, registry = str(tmp_path / "nothing"), str(tmp_path / "registry")
    words = ("register", nothing, "--name", "planes", "--registry", registry)
    code, output = server.run("submit", *words)
    assert code == 2, output
    assert output.count(f"error: {nothing}") == 1
    assert "Traceback" not in output
    job_id = job_of(output)
    assert f"job {job_id} failed with exit code 2" in output
    _, listed = server.run("jobs", "list", COLUMNS="200")
    assert re.search(rf"{job_id}\s+FAILED", listed), listed


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 64}, "does not accept this token"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nothing/here"}, "/nothing/here: no token can be read"),
    ],
)
def test_a_missing_or_wrong_token_is_told_and_none_is_shown(
    server: JobServer, variables: dict[str, str], message: str
) -> None:
    code, output = server.run("jobs", "list", **variables)
    assert code == 2, output
    assert message in output
    assert "RAY_AUTH_TOKEN_PATH" in output
    assert "Traceback" not in output
    assert server.token not in output
    assert "f" * 64 not in output


def test_an_unknown_job_is_told(server: JobServer) -> None:
    for action in ("follow", "stop"):
        code, output = server.run("jobs", action, "nothing")
        assert (code, "nothing does not exist" in output) == (2, True), output
        assert "Traceback" not in output


@pytest.fixture(scope="module")
def whole(server: JobServer, prepared: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one job has trained from beginning to end."""
    runs = tmp_path_factory.mktemp("runs")
    words = ("train", prepared, "--runs", str(runs), "--name", "whole")
    code, output = server.run(
        "submit", "--env", "FETAL_GIT_COMMIT", *words, FETAL_GIT_COMMIT=COMMIT
    )
    assert code == 0, output
    assert f"epoch {EPOCHS:>3}/{EPOCHS}" in output
    assert output.endswith(f"job {job_of(output)} succeeded\n")
    return runs / "whole"


@pytest.mark.heavy
def test_a_model_of_a_job_knows_its_commit_and_is_evaluated(server: JobServer, whole: Path) -> None:
    described = json.loads((whole / "bundle/model.json").read_text())
    assert described["git_commit"] == COMMIT
    code, output = server.run("submit", "evaluate", str(whole))
    assert code == 0, output
    assert json.loads((whole / "metrics.json").read_text())["images"] > 0


@pytest.mark.heavy
def test_a_stopped_job_submitted_again_equals_an_uninterrupted_one(
    server: JobServer, prepared: str, whole: Path, tmp_path: Path
) -> None:
    """Left by Ctrl-C, stopped, and continued."""
    run = tmp_path / "stopped"
    words = ("train", prepared, "--runs", str(tmp_path), "--name", "stopped")
    job_id, command = left_by_ctrl_c(server, words, run)
    server.stop_at_once(job_id)
    code, output = server.run("jobs", "follow", job_id)
    assert (code, f"job {job_id} was stopped" in output) == (143, True), output
    assert 2 <= epochs(run) < EPOCHS
    # What was printed, as a user pastes it.
    assert expect_the_rest(finished(server.shell(command)), run, whole) >= 2


@pytest.mark.heavy
def test_a_failed_job_submitted_again_equals_an_uninterrupted_one(
    server: JobServer, prepared: str, whole: Path, tmp_path: Path
) -> None:
    """Its process is killed, as where memory runs out."""
    run = tmp_path / "killed"
    words = ("submit", "train", prepared, "--runs", str(tmp_path), "--name", "killed")
    process = server.start(*words)
    try:
        wait_until(lambda: epochs(run) >= 2 or process.poll() is not None)
        for pid in drivers(tmp_path):
            os.kill(pid, signal.SIGKILL)
    finally:
        code, output = finished(process)
    job_id = job_of(output)
    assert (code, f"job {job_id} failed with exit code 137" in output) == (137, True), output
    _, listed = server.run("jobs", "list", COLUMNS="300")
    assert re.search(rf"{job_id}\s+FAILED", listed), listed
    assert epochs(run) < EPOCHS
    expect_the_rest(server.run(*words), run, whole)


def drivers(runs: Path) -> list[int]:
    """The processes of jobs that train below a folder; a shell that waits for one is left alone."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = file.read_text().split("\0")
            if words[1:3] == ["-m", "ray_jobs.train"] and str(runs) in words:
                found.append(int(file.parent.name))
    return found


def expect_the_rest(ended: tuple[int, str], run: Path, whole: Path) -> int:
    """A job went on with a run, to the numbers of an uninterrupted one; in or after which epoch."""
    code, output = ended
    assert code == 0, output
    resumed = re.search(rf"resuming (?:after|in) epoch (\d+) of {EPOCHS}", output)
    assert resumed is not None, output
    assert int(resumed[1]) <= EPOCHS
    assert records(run) == records(whole)
    ours, theirs = (load_file(folder / "bundle/weights.safetensors") for folder in (run, whole))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    return int(resumed[1])


def left_by_ctrl_c(server: JobServer, words: tuple[str, ...], run: Path) -> tuple[str, str]:
    """Submit a job and press Ctrl-C after its first epoch, whereupon it trains on.

    Returns:
        The job's id, and the command that was shown.
    """
    process = server.start("submit", *words)
    try:
        wait_until(lambda: epochs(run) >= 1 or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        kill(process)
    job_id = job_of(output)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert f"job {job_id} goes on without you" in output
    assert f"fetal jobs stop {job_id}" in output
    done = epochs(run)
    wait_until(lambda: epochs(run) > done)
    return job_id, next(line for line in output.splitlines() if line.startswith("ray job submit"))


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs(run: Path) -> int:
    return len(training_history(str(run))) if (run / "metrics.jsonl").exists() else 0


def records(run: Path) -> list[dict[str, float]]:
    timed = {"train_s", "epoch_s", "images_per_s"}
    history = training_history(str(run))
    return [{k: v for k, v in record.items() if k not in timed} for record in history]


@pytest.mark.heavy
def test_nobody_needs_to_wait(server: JobServer, prepared: str, tmp_path: Path) -> None:
    """--no-wait ends at once; a twin is refused; the output and the end are there later."""
    long = ("train", prepared, "--runs", str(tmp_path), "--train.epochs", "100000")
    named = ("submit", "--no-wait", "--submission-id", "night-1")
    code, output = server.run(*named, *long)
    assert (code, "job night-1 submitted" in output) == (0, True), output
    code, output = server.run("submit", *long)
    assert (code, "job night-1 is doing the same now" in output) == (2, True), output
    code, output = server.run("jobs", "status", "night-1")
    assert (code, "is running since" in output or "is pending" in output) == (0, True), output
    assert server.run("jobs", "stop", "night-1")[0] == 0
    assert server.run("jobs", "follow", "night-1")[0] == 143
    code, output = server.run(*named, "audit", str(tmp_path / "nothing"))
    assert (code, "night-1 already exists" in output) == (2, True), output
    assert "Traceback" not in output

    words = (
        "submit",
        "--no-wait",
        "--submission-id",
        "night-2",
        "audit",
        str(tmp_path / "nothing"),
    )
    assert server.run(*words)[0] == 0
    code, output = server.run("jobs", "follow", "night-2")
    assert (code, "failed with exit code 1" in output) == (1, True), output
    code, said = server.run("jobs", "logs", "night-2")
    assert (code, "unreadable-data" in said) == (0, True), said
    assert said in output
