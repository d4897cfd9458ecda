"""A cluster's job server: connection, log streams, exit codes; errors that a user can mend."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from fetal_core.errors import FetalError
from ray_jobs.console import errors, say
from ray_jobs.signals import TERMINATED

_AUTH_MODE = "RAY_AUTH_MODE"
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
FAILED = 1
_CONNECT_S = 10
_PAUSE_S = 1.0
_ATTEMPTS = 60

_TOKEN = (
    "Put the cluster's token into a file and name it with RAY_AUTH_TOKEN_PATH, or into "
    "~/.ray/auth_token, or set RAY_AUTH_TOKEN; on the cluster, `ray get-auth-token` shows it."
)


class JobServerError(FetalError):
    """The cluster's job server cannot be reached, or refuses what was asked."""


@contextmanager
def told(address: str | None) -> Iterator[None]:
    """Errors of Ray's client as messages for the user.

    Raises:
        JobServerError: instead of them.
    """
    where = address or next((os.environ[key] for key in ADDRESSES if key in os.environ), None)
    shown = where or "a cluster of this machine"
    try:
        yield
    except AuthenticationError as error:
        raise JobServerError(f"{shown}: {_refusal(str(error))} {_TOKEN}") from None
    except RuntimeError as error:
        raise JobServerError(f"{shown}: {_last_line(error)}") from None
    except (OSError, ValueError) as error:
        raise JobServerError(
            f"{shown}: no job server answers: {_last_line(error)} Give --address "
            "http://HEAD:8265 (the dashboard of the cluster's head node), or set "
            "RAY_API_SERVER_ADDRESS."
        ) from None


def connect(address: str | None) -> JobSubmissionClient:
    """The client of a job server; ``address`` comes before the environment's variables.

    Raises:
        JobServerError: nothing answers there, or the token is missing or wrong.
    """
    logging.getLogger("ray.dashboard").setLevel(logging.ERROR)
    if address is not None:
        # Ray's client would let them override its argument.
        for key in ADDRESSES:
            os.environ.pop(key, None)
    with told(address):
        _probe(address or next((os.environ[key] for key in ADDRESSES if key in os.environ), ""))
        use_token()
        return JobSubmissionClient(address)


def use_token() -> bool:
    """Send the token that Ray finds here, unless ``RAY_AUTH_MODE`` is set.

    Returns:
        Whether other commands of Ray need ``RAY_AUTH_MODE=token`` to do the same.
    """
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    decided = _AUTH_MODE in os.environ
    return maybe_enable_token_auth_if_token_available(warn_if_disabled=False) and not decided


def other_machines(client: JobSubmissionClient) -> list[str]:
    """Names of the cluster's machines that are not this one.

    Raises:
        JobServerError: the server does not tell.
    """
    with told(client.get_address()):
        answer = client._do_request("GET", "/nodes?view=hostNameList")
        answer.raise_for_status()
        names: list[str] = answer.json()["data"]["hostNameList"]
    return sorted(set(names) - {socket.gethostname()})


def running_twin(client: JobSubmissionClient, entrypoint: str) -> str | None:
    """A job that has not ended and does the same."""
    with told(client.get_address()):
        jobs: list[JobDetails] = client.list_jobs()
    for job in jobs:
        if job.submission_id and job.entrypoint == entrypoint and not job.status.is_terminal():
            return str(job.submission_id)
    return None


def info(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """State of a job.

    Raises:
        JobServerError: there is no such job.
    """
    with told(client.get_address()):
        return client.get_job_info(job_id)


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Show the output of a job as it comes, from its beginning, and wait for its end.

    A connection that breaks is made again.

    Returns:
        The job's exit code.

    Raises:
        JobServerError: there is no such job, or the server is gone.
    """
    info(client, job_id)
    output = _Output(client, job_id)
    failures, last = 0, ""
    while failures < _ATTEMPTS:
        before = output.shown
        try:
            asyncio.run(output.show())
            found = info(client, job_id)
        except Exception as error:  # the HTTP library has its own for a lost connection
            failures = failures + 1 if output.shown == before else 1
            last = _last_line(error)
        else:
            if found.status.is_terminal():
                return conclude(found)
            failures = 0
        time.sleep(_PAUSE_S)
    raise JobServerError(f"the connection to {client.get_address()} is lost: {last}")


class _Output:
    """What a job says, each character shown once, however often it is fetched.

    Attributes:
        shown: number of characters.
    """

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self.shown = 0

    async def show(self) -> None:
        """Fetch from the beginning, and show what is new until the stream ends."""
        seen = 0
        async for text in self._client.tail_job_logs(self._job_id):
            sys.stdout.write(text[max(0, self.shown - seen) :])
            sys.stdout.flush()
            seen += len(text)
            self.shown = max(self.shown, seen)


def conclude(found: JobDetails) -> int:
    """Say how a job has ended; the exit code that stands for it."""
    job_id = found.submission_id
    code = exit_code(found)
    if found.status == JobStatus.SUCCEEDED:
        say(f"job {job_id} succeeded")
    elif found.status == JobStatus.STOPPED:
        errors.print(f"job {job_id} was stopped; the same submission continues", markup=False)
    elif found.driver_exit_code is None:
        reason = (found.message or "").strip()
        errors.print(f"job {job_id} failed: {reason}", markup=False)
    else:
        errors.print(f"job {job_id} failed with exit code {code}", markup=False)
    return code


def exit_code(found: JobDetails) -> int:
    """The exit code of a job's own process, as a shell would give it; 143 where it was stopped."""
    if found.status == JobStatus.STOPPED:
        return TERMINATED
    if found.status == JobStatus.SUCCEEDED:
        return 0
    code = found.driver_exit_code
    if code is None:
        return FAILED
    return int(code) if code >= 0 else 128 - int(code)


def next_steps(job_id: str, address: str | None) -> str:
    """Commands to follow or to stop a job."""
    at = "" if address is None else f" --address {shlex.quote(address)}"
    return f"follow it: fetal jobs follow {job_id}{at}\nstop it:   fetal jobs stop {job_id}{at}"


def interrupted(job_id: str, address: str | None) -> str:
    """What to say when the one who watches a job leaves."""
    return f"job {job_id} goes on without you\n{next_steps(job_id, address)}"


def _probe(address: str) -> None:
    """Fail at once where nothing listens."""
    if "://" in address:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    else:
        host, _, text = address.rpartition(":")
        port = int(text) if text.isdigit() else 0
    if host and port:
        socket.create_connection((host, port), _CONNECT_S).close()


def _refusal(text: str) -> str:
    if "Forbidden" in text or "invalid" in text:
        return "the cluster does not accept this token."
    if "cannot be opened" in text:
        return f"{os.environ.get('RAY_AUTH_TOKEN_PATH')}: no token can be read from this file."
    return "the cluster asks for a token, and none was found."


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip().strip("'\".")]
    text = lines[-1] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
