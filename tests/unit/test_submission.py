"""Following a job across lost connections, and the exit codes that jobs end with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from ray_jobs import submission


def details(status: str, code: int | None = None) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id="night",
        entrypoint="python -m ray_jobs.train",
        status=JobStatus(status),
        driver_exit_code=code,
        message="the runtime environment failed",
    )


class ShakyServer:
    """A job server whose connection breaks after each of the given pieces of output but the last.

    Every connection begins with the first character again.
    """

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.connections = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.connections += 1
        for piece in self.pieces[: self.connections]:
            yield piece
        if self.connections < len(self.pieces):
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, job_id: str) -> JobDetails:
        done = self.connections == len(self.pieces)
        return details("FAILED", 3) if done else details("RUNNING")

    def get_address(self) -> str:
        return "http://head:8265"


def test_a_lost_connection_is_made_again_and_nothing_is_shown_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server: Any = ShakyServer("epoch 1\nepo", "ch 2\n", "epoch 3\n")
    assert submission.follow(cast(JobSubmissionClient, server), "night") == 3
    assert server.connections == 3
    shown = capsys.readouterr()
    assert shown.out == "epoch 1\nepoch 2\nepoch 3\n"
    assert shown.err == "job night failed with exit code 3\n"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_exit_codes_are_those_of_a_shell(status: str, code: int | None, expected: int) -> None:
    assert submission.exit_code(details(status, code)) == expected


def test_a_job_that_never_started_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert submission.conclude(details("FAILED")) == 1
    assert capsys.readouterr().err == "job night failed: the runtime environment failed\n"
