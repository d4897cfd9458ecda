"""Requests a second and answer times of `fetal serve` beside its limit and its peers.

    python -m bench.serve IMAGES --peers peers/bin/python

The same PNG files are posted by wrk to each contender in turn; all run the same INT8 ResNet50 at
224 px and share the functions that decode and resize. The ceiling is that work in one process
without HTTP. Needs wrk, and for the peers an environment made from `bench/serving/peers.txt`.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.serving.load import Figures, bodies, post, wait_for
from bench.serving.model import write_bundle
from ray_jobs.front import free_port

ROOT = Path(__file__).resolve().parents[1]
CONNECTIONS = (1, 4, 16, 64)
OURS = "fetal serve"


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


@contextmanager
def running(contender: Contender, bundle: str, images: list[Path], folder: Path) -> Iterator[str]:
    """The contender's address, once it has answered."""
    port = str(free_port())
    silent = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1"}
    environment = os.environ | silent | {"BENCH_BUNDLE": bundle, "BENCH_PORT": port}
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
    url = f"http://127.0.0.1:{port}{contender.path}"
    try:
        files, media_type = bodies(images[:1], folder, contender.multipart)
        wait_for(url, files[0].read_bytes(), media_type)
        yield url
    except RuntimeError:
        print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ceiling(images: Path, bundle: str, python: str, seconds: float) -> float:
    """Images a second of the same work without HTTP."""
    command = [python, "-m", "bench.serving.ceiling", str(images), "--seconds", str(seconds)]
    environment = os.environ | {"BENCH_BUNDLE": bundle}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return float(run.stdout.rpartition("CEILING ")[2])


def show(name: str, connections: int, found: Figures, limit: float) -> None:
    """A line of the table."""
    print(
        f"{name:<12} {connections:>3} connections  {found.rate_per_s:>6.1f} requests/s  "
        f"{found.rate_per_s / limit:.2f} of the ceiling  p50 {found.p50_ms:>6.1f} ms  "
        f"p99 {found.p99_ms:>6.1f} ms  {found.errors} errors",
        flush=True,
    )


def at_half_load(url: str, images: list[Path], folder: Path, found: dict[int, Figures]) -> None:
    """Answer times of four clients that together ask for half of what the service can do."""
    clients = 4
    most_per_s = max(figures.rate_per_s for figures in found.values())
    pause_ms = round(1000 * clients / (most_per_s / 2) - found[1].p50_ms)
    half = post(url, images, "image/png", folder, clients, 20, pause_ms)
    print(
        f"{OURS} at {half.rate_per_s / most_per_s:.2f} of its rate: p50 {half.p50_ms:.1f} ms, "
        f"p99 {half.p99_ms:.1f} ms = {half.p99_ms / found[1].p50_ms:.2f} x the unloaded p50",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of PNG files")
    parser.add_argument("--peers", help="python of the peers' environment")
    parser.add_argument("--bundle", help="with an openvino-int8 engine; by default one is made")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", help="name of one contender")
    parser.add_argument("--flags", default="", help="of fetal serve, in one word")
    args = parser.parse_args()
    images = sorted(args.images.resolve().glob("*.png"))
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        folder = Path(name)
        bundle = args.bundle or write_bundle(folder, images)
        rows: dict[tuple[str, int], list[Figures]] = {}
        limits: list[float] = []
        for _round in range(args.rounds):
            limits.append(ceiling(args.images.resolve(), bundle, args.peers or sys.executable, 5))
            print(f"ceiling: {limits[-1]:.1f} images/s", flush=True)
            for contender in contenders(bundle, args.peers, args.flags.split()):
                if args.only not in (None, contender.name):
                    continue
                with running(contender, bundle, images, folder) as url:
                    files, media_type = bodies(images, folder, contender.multipart)
                    post(url, files, media_type, folder, 8, 3)
                    found = {}
                    for connections in CONNECTIONS:
                        figures = post(url, files, media_type, folder, connections, args.seconds)
                        found[connections] = figures
                        rows.setdefault((contender.name, connections), []).append(figures)
                        show(contender.name, connections, figures, limits[-1])
                    if contender.name == OURS:
                        at_half_load(url, images, folder, found)
    limit = statistics.median(limits)
    print(f"medians of {args.rounds} rounds; ceiling {limit:.1f} images/s, {len(images)} files")
    for (name, connections), found_rows in rows.items():
        middle = Figures(
            *(statistics.median(getattr(row, field) for row in found_rows)
              for field in ("rate_per_s", "p50_ms", "p99_ms")),
            errors=sum(row.errors for row in found_rows),
        )  # fmt: skip
        show(name, connections, middle, limit)


if __name__ == "__main__":
    main()
