"""``fetal jobs``: the jobs of a cluster; list, status, logs, follow, stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import tyro
from ray.job_submission import JobDetails
from rich.table import Table
from rich.text import Text

from fetal_core.config import nearest
from fetal_core.errors import ConfigError
from ray_jobs import submission
from ray_jobs.command import parse_args, stage
from ray_jobs.console import console, errors, say
from ray_jobs.signals import INTERRUPTED

_STOP_S = 60


@dataclass
class ListArgs:
    """List the jobs of a cluster, the latest last."""

    address: str | None = None
    """Of the job server; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS."""


@dataclass
class JobArgs:
    """One job of a cluster."""

    id: tyro.conf.Positional[str]
    """Name of the job, as `fetal submit` and `fetal jobs list` show it."""
    address: str | None = None
    """Of the job server; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS."""


def list_jobs(argv: Sequence[str]) -> int:
    """The command line of ``fetal jobs list``."""
    args = parse_args(ListArgs, argv, "fetal jobs list")
    client = submission.connect(args.address)
    with submission.told(args.address):
        jobs: list[JobDetails] = client.list_jobs()
    table = Table("job", "status", "started", "minutes", "command", box=None)
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        if job.submission_id is not None:
            cells = (job.submission_id, str(job.status.value), *_times(job), job.entrypoint)
            table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    return 0


def status(argv: Sequence[str]) -> int:
    """The command line of ``fetal jobs status``: the code of a job that has ended, else 0."""
    args = parse_args(JobArgs, argv, "fetal jobs status")
    found = submission.info(submission.connect(args.address), args.id)
    if found.status.is_terminal():
        return submission.conclude(found)
    started, minutes = _times(found)
    say(f"job {args.id} is {found.status.value.lower()} since {started}, {minutes} minutes")
    return 0


def logs(argv: Sequence[str]) -> int:
    """The command line of ``fetal jobs logs``: what a job has said so far."""
    args = parse_args(JobArgs, argv, "fetal jobs logs")
    client = submission.connect(args.address)
    with submission.told(args.address):
        sys.stdout.write(client.get_job_logs(args.id))
    return 0


def follow(argv: Sequence[str]) -> int:
    """The command line of ``fetal jobs follow``: output until the end, and the job's exit code."""
    args = parse_args(JobArgs, argv, "fetal jobs follow")
    client = submission.connect(args.address)
    try:
        return submission.follow(client, args.id)
    except KeyboardInterrupt:
        errors.print(submission.interrupted(args.id, args.address), markup=False)
        return INTERRUPTED


def stop(argv: Sequence[str]) -> int:
    """The command line of ``fetal jobs stop``: 0 once the job has ended."""
    args = parse_args(JobArgs, argv, "fetal jobs stop")
    client = submission.connect(args.address)
    found = submission.info(client, args.id)
    if found.status.is_terminal():
        say(f"job {args.id} had ended before: {found.status.value.lower()}")
        return 0
    with submission.told(args.address):
        client.stop_job(args.id)
    deadline_s = time.monotonic() + _STOP_S
    while not (found := submission.info(client, args.id)).status.is_terminal():
        if time.monotonic() > deadline_s:
            raise submission.JobServerError(f"job {args.id} has not ended after {_STOP_S} s.")
        time.sleep(0.2)
    submission.conclude(found)
    return 0


ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": list_jobs,
    "status": status,
    "logs": logs,
    "follow": follow,
    "stop": stop,
}
USAGE = (
    "usage: fetal jobs list | status ID | logs ID | follow ID | stop ID  [--address URL]\n"
    "`fetal jobs status --help` and so on list the arguments."
)


def main(argv: Sequence[str]) -> int:
    """The command line of ``fetal jobs``."""
    if argv and argv[0] in ("-h", "--help"):
        say(USAGE)
        return 0
    action = argv[0] if argv else ""
    if action not in ACTIONS:
        hint = nearest(action, list(ACTIONS)) or "."
        raise ConfigError(f"fetal jobs {action}: no such command{hint}\n{USAGE}")
    return ACTIONS[action](argv[1:])


def _times(job: JobDetails) -> tuple[str, str]:
    """When a job began, and how long it has run."""
    if not job.start_time:
        return "", ""
    began_s = job.start_time / 1000
    ended_s = job.end_time / 1000 if job.end_time else time.time()
    return (
        datetime.fromtimestamp(began_s, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        f"{(ended_s - began_s) / 60:.1f}",
    )


if __name__ == "__main__":
    sys.exit(stage("jobs"))
