"""Stages as jobs of a real cluster with a job server that asks for a token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cohorts import flags, recipe
from job_server import JobServer, job_server

pytestmark = pytest.mark.ray

SETTINGS = recipe(train={"epochs": 6, "batch_size": 8})
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
    code, output = server.run("submit", "evaluate", str(tmp_path / "nothing"))
    assert code == 2, output
    assert output.count("not a run. Give the folder `fetal train` printed.") == 1
    assert "Traceback" not in output
    job_id = job_of(output)
    assert server.run("jobs", "status", job_id)[0] == 2
    assert "failed with exit code 2" in server.run("jobs", "status", job_id)[1]
    _, listed = server.run("jobs", "list", COLUMNS="200")
    assert re.search(rf"{job_id}\s+FAILED", listed), listed


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 64}, "does not accept this token"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nothing/here"}, "/nothing/here"),
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
    for action in ("status", "logs", "follow", "stop"):
        code, output = server.run("jobs", action, "nothing")
        assert (code, "nothing does not exist" in output) == (2, True), output
        assert "Traceback" not in output
