"""The limit: threads that decode feed the engine in one process, without HTTP."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench.serving.common import Model

_AHEAD = 16


def rate(model: Model, files: list[bytes], engines: int, batch: int, seconds: float) -> float:
    """Images a second, with ``engines`` threads that call the engine with ``batch`` images."""

    def work(number: int) -> int:
        pixels = [model.image(files[(number + i) % len(files)]) for i in range(batch)]
        model.answers(np.stack(pixels))
        return batch

    with ThreadPoolExecutor(engines + 1) as pool:
        waiting = [pool.submit(work, number) for number in range(_AHEAD // batch)]
        done, number, started_s = 0, _AHEAD, time.perf_counter()
        while time.perf_counter() - started_s < seconds:
            done += waiting.pop(0).result()
            waiting.append(pool.submit(work, number))
            number += batch
        duration_s = time.perf_counter() - started_s
        for future in waiting:
            future.cancel()
    return done / duration_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("--seconds", type=float, default=8)
    args = parser.parse_args()
    files = [path.read_bytes() for path in sorted(Path(args.images).glob("*.png"))]
    found = {}
    for hint, threads, batch in (
        ("LATENCY", 2, 1),
        ("LATENCY", 2, 8),
        ("THROUGHPUT", 2, 1),
        ("THROUGHPUT", 2, 4),
    ):
        model = Model(PERFORMANCE_HINT=hint)
        rate(model, files, threads, batch, 1)
        found[hint, threads, batch] = rate(model, files, threads, batch, args.seconds)
    for (hint, _threads, batch), images_per_s in found.items():
        print(f"{hint.lower()}, batches of {batch}: {images_per_s:.1f} images/s", flush=True)
    print(f"CEILING {max(found.values()):.3f}")


if __name__ == "__main__":
    main()
