"""A Ray cluster with a job server and a token of its own, and commands that speak to it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cohorts import kill
from ray_jobs.front import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
START_S = 120


@dataclass(frozen=True)
class JobServer:
    """A running cluster.

    Attributes:
        address: of its job server.
        token: what it asks for.
        environment: variables of a user who may submit jobs; no address among them.
        gcs: host and port at which other machines would join.
    """

    address: str
    token: str
    environment: dict[str, str]
    gcs: str

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """A ``fetal`` command in the checkout, in a session of its own."""
        return self.shell([sys.executable, "-m", "ray_jobs.cli", *words], **variables)

    def shell(self, command: str | list[str], **variables: str) -> subprocess.Popen[str]:
        """Any command in the checkout."""
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.address} | variables,
            shell=isinstance(command, str),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, **variables: str) -> tuple[int, str]:
        """Exit code and output of a ``fetal`` command."""
        return finished(self.start(*words, **variables))

    def stop_at_once(self, job_id: str) -> None:
        """Ask the server to stop a job, without the time that a command takes to start."""
        header = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.address}/api/jobs/{job_id}/stop"
        request = urllib.request.Request(url, b"", header, method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.loads(answer.read()) == {"stopped": True}


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process at its end."""
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        kill(process)
    return process.returncode, output


@contextmanager
def job_server(folder: Path, **variables: str) -> Iterator[JobServer]:
    """A cluster of one machine that asks for a token, with ports of its own.

    Args:
        folder: for the token and the log.
        variables: more of them for the environment, the machine's too; of AWS it has no others.
    """
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
    environment = ours | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    dashboard, gcs = free_port(), free_port()
    # Its sockets need a short path.
    scratch = tempfile.mkdtemp(prefix="fetal-")
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            [
                str(SCRIPTS / "ray"),
                "start",
                "--head",
                "--block",
                *_options(dashboard, gcs, scratch),
            ],
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            env=environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        )
    try:
        _wait_until_it_listens(process, dashboard, folder / "ray.log")
        address = f"http://127.0.0.1:{dashboard}"
        yield JobServer(address, token, environment, f"127.0.0.1:{gcs}")
    finally:
        kill(process)
        shutil.rmtree(scratch, ignore_errors=True)


def _options(dashboard: int, gcs: int, scratch: str) -> list[str]:
    ports = ("ray-client-server-port", "dashboard-agent-listen-port")
    return [
        *(f"--{name}={free_port()}" for name in ports),
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        f"--temp-dir={scratch}",
        "--dashboard-host=127.0.0.1",
        "--node-ip-address=127.0.0.1",
        "--num-cpus=4",
        "--object-store-memory=200000000",
        "--disable-usage-stats",
    ]


def _wait_until_it_listens(process: subprocess.Popen[str], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
