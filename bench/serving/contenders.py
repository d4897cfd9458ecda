"""Servers to compare: started together, and stopped in their tracks while another is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.serving.load import bodies, wait_for
from ray_jobs.front import free_port

ROOT = Path(__file__).resolve().parents[2]
OURS = "fetal serve"

# A frozen cluster must not take its own silence for a death.
_PATIENT = {
    "RAY_health_check_timeout_ms": "600000",
    "RAY_health_check_failure_threshold": "1000",
    "RAY_SERVE_CONTROLLER_HEALTH_CHECK_TIMEOUT_S": "600",
}
_SILENT = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Contender:
    """A server: its command with ``{port}``, and what it is posted."""

    name: str
    command: tuple[str, ...]
    path: str = "/predict"
    multipart: bool = False


def contenders(bundle: str, peers: str | None, extra: list[str]) -> list[Contender]:
    """Ours, and the peers where there is an environment for them."""
    ours = (sys.executable, "-m", "ray_jobs.serve", bundle, "--port", "{port}", *extra)
    found = [Contender(OURS, ours, "/v1/predict")]
    if peers is not None:
        bento = (peers, "-m", "bentoml", "serve", "bench.serving.peer_bentoml:Planes")
        found += [
            Contender("FastAPI", (peers, "-m", "bench.serving.peer_fastapi")),
            Contender("LitServe", (peers, "-m", "bench.serving.peer_litserve"), multipart=True),
            Contender(
                "BentoML", (*bento, "--port", "{port}", "--host", "127.0.0.1"), multipart=True
            ),
        ]
    return found


@dataclass(frozen=True)
class Server:
    """A contender that runs, with what is posted to it."""

    name: str
    url: str
    files: list[Path]
    media_type: str
    process: subprocess.Popen[bytes]

    def freeze(self) -> None:
        """Stop all its processes where they are: what idles costs processor time too."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """Processor time of all its processes since they were started."""
        total = 0.0
        for process in self._tree():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _signal(self, number: signal.Signals) -> None:
        for process in self._tree():
            with suppress(psutil.Error):
                process.send_signal(number)

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


@contextmanager
def running(
    contender: Contender, bundle: str, images: list[Path], folder: Path
) -> Iterator[Server]:
    """The contender, once it has answered.

    Raises:
        RuntimeError: it did not.
    """
    port = str(free_port())
    environment = os.environ | _SILENT | _PATIENT | {"BENCH_BUNDLE": bundle, "BENCH_PORT": port}
    log = folder / f"{contender.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [word.format(port=port) for word in contender.command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    files, media_type = bodies(images, folder, contender.multipart)
    url = f"http://127.0.0.1:{port}{contender.path}"
    server = Server(contender.name, url, files, media_type, process)
    try:
        wait_for(url, files[0].read_bytes(), media_type)
        yield server
    except RuntimeError:
        print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
        raise
    finally:
        server.thaw()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
