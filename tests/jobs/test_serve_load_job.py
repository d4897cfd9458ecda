"""Mixed load while replicas are killed and the alias moves: no failed request, memory flat.

`FETAL_LOAD_S=1800` makes it as long as an operator would watch it; by default it is short.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean
from urllib.parse import urlsplit

import pytest

from fetal_core.registry import Registry
from ray_jobs.front import FrontConfig, free_port
from ray_jobs.serve import serving
from ray_jobs.serve_app import ServeConfig

pytestmark = [pytest.mark.ray, pytest.mark.heavy, pytest.mark.timeout(3600)]

LOAD_S = float(os.environ.get("FETAL_LOAD_S", "60"))
CLIENTS = 4
KINDS, WEIGHTS = ("predict", "explain", "wrong", "model"), (20, 1, 2, 4)
# A replica that kept one of the models it exchanges would grow by twice as much within a minute.
GROWTH_BYTES = 128 * 2**20


class Load:
    """Clients that ask for everything in turn and count the answers."""

    def __init__(self, address: str, images: list[bytes]) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.versions: Counter[str] = Counter()
        self.faults: list[str] = []
        self._where = urlsplit(address)
        self._images = images
        self._stop = threading.Event()
        self._clients = [threading.Thread(target=self._run, args=(i,)) for i in range(CLIENTS)]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()

    def _run(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stop.is_set():
            self._ask(draw.choices(KINDS, WEIGHTS)[0], draw)

    def _ask(self, what: str, draw: random.Random) -> None:
        image = draw.choice(self._images)
        method, path, body = {
            "predict": ("POST", "/v1/predict", image),
            "explain": ("POST", "/v1/explain", image),
            "wrong": ("POST", "/v1/predict", image[:200]),
            "model": ("GET", "/v1/model", None),
        }[what]
        connection = http.client.HTTPConnection(self._where.hostname or "", self._where.port)
        connection.timeout = 90
        try:
            connection.request(method, path, body, {"Content-Type": "image/png"} if body else {})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.faults.append(f"{what}: {error!r}")
            return
        finally:
            connection.close()
        self.answers[what, answer.status] += 1
        if answer.status != (400 if what == "wrong" else 200):
            self.faults.append(f"{what}: {answer.status} {content[:300]!r}")
        if what == "predict" and answer.status == 200:
            self.versions[json.loads(content)["model"]["version"]] += 1


def replicas() -> dict[int, int]:
    """Resident bytes of the replicas that this process's Ray has started, the oldest first.

    Numbers of processes begin anew at some time, so they do not tell the age.
    """
    parents, sizes, started = {}, {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            pid = int(folder.name)
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[pid], started[pid] = int(fields[1]), int(fields[19])
            if (folder / "cmdline").read_bytes().startswith(b"ray::ServeReplica:planes"):
                pages = int((folder / "statm").read_text().split()[1])
                sizes[pid] = pages * os.sysconf("SC_PAGE_SIZE")
    oldest_first = sorted(sizes, key=lambda pid: started[pid])
    return {pid: sizes[pid] for pid in oldest_first if os.getpid() in ancestors(pid, parents)}


def ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    found = []
    while pid := parents.get(pid, 0):
        found.append(pid)
    return found


def watch(pid: int, seconds: int) -> list[int]:
    """A replica's resident bytes, second by second."""
    sizes = []
    for _ in range(seconds):
        time.sleep(1)
        sizes.append(replicas()[pid])
    return sizes


def growth(floors: list[int]) -> float:
    """From the first third of the cycles to the last, after a warm-up: bytes at their lowest.

    A second model in memory comes and goes within each cycle; what leaks raises the lowest point.
    """
    warm = floors[max(1, len(floors) // 4) :]
    third = max(1, len(warm) // 3)
    return mean(warm[-third:]) - mean(warm[:third])


@pytest.fixture
def address(cluster: None, registry: Registry) -> Iterator[str]:
    config = ServeConfig(
        model="planes@champion", registry=registry.uri, engine="torch", threads=1, replicas=2
    )
    with serving(config, FrontConfig(port=free_port())) as found:
        yield found


def test_no_request_fails_while_replicas_die_and_versions_change(
    address: str, registry: Registry, cohort: Path
) -> None:
    images = [path.read_bytes() for path in sorted((cohort / "images").iterdir())]
    killed = 0
    floors: list[int] = []
    with Load(address, images) as load:
        oldest = next(iter(replicas()))
        end_s = time.monotonic() + LOAD_S
        while time.monotonic() < end_s:
            sizes = watch(oldest, 5)
            if len(alive := replicas()) == 2:
                os.kill(list(alive)[-1], signal.SIGKILL)
                killed += 1
            sizes += watch(oldest, 2)
            registry.promote("planes", 2, "champion")
            sizes += watch(oldest, 5)
            registry.rollback("planes", "champion")
            floors.append(min(sizes))
    assert load.faults == []
    assert killed >= 2
    assert set(load.versions) == {"1", "2"}
    assert {what for what, _ in load.answers} == set(KINDS)
    assert len(floors) >= 3
    assert growth(floors) < GROWTH_BYTES, [size >> 20 for size in floors]
