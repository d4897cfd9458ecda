"""What `fetal prepare` and an epoch of `fetal train` cost as images and workers grow.

    python -m bench.scale --images 200 --factors 1 2 4 --workers 1 2

Synthetic cohorts of 1, 2 and 4 times as many images. A line through the times gives what is paid
once and what is paid for each image; docs/scaling.md extrapolates from the latter.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.results import machine, table, write_section
from bench.training.contenders import Contender, turn
from bench.training.data import fetal
from fetal_core.shards import ShardIndex

HEADING = "Scale"


@dataclass(frozen=True)
class Line:
    """Seconds as a function of images."""

    fixed_s: float
    each_s: float

    @classmethod
    def through(cls, images: Sequence[int], seconds: Sequence[float]) -> Line:
        """Least squares; through one point, all of it is paid for the images."""
        if len(set(images)) < 2:
            return cls(0.0, statistics.fmean(seconds) / images[0])
        each_s, fixed_s = np.polyfit(images, seconds, 1)
        return cls(float(fixed_s), float(each_s))

    def __str__(self) -> str:
        return f"{self.fixed_s:.1f} s and {1000 * self.each_s:.1f} ms an image"


def prepared(folder: Path, images: int, args: argparse.Namespace) -> tuple[Path, float, float]:
    """Folder of the shards, seconds of the command, bytes of a training image in them."""
    prefix = shlex.split(args.prefix)
    cohort, out = folder / f"images-{images}", folder / f"prepared-{images}"
    patients = str(max(12, images // 7))
    fetal(("phantom", str(cohort), "--images", str(images), "--patients", patients), prefix)
    started_s = time.perf_counter()
    size = ("--preprocess.size-px", str(args.size_px))
    fetal(("prepare", str(cohort), "--out", str(out), *size), prefix)
    wall_s = time.perf_counter() - started_s
    files = ShardIndex.load(str(out / "shards")).parts["train"]
    return out, wall_s, sum(file.bytes for file in files) / sum(file.rows for file in files)


def training(cohort: Path, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a run over the whole training part."""
    command = (
        *(sys.executable, "-m", "bench.training.ours", str(cohort), "--runs", "{runs}"),
        *("--model.architecture", args.architecture, "--model.weights", "none"),
        *("--train.batch-size", str(args.batch), "--train.epochs", str(args.epochs)),
        *("--train.max-val-images", "8", "--cluster.workers", str(workers)),
    )
    return turn(Contender("fetal train", command), shlex.split(args.prefix), args.timeout)


def measure(args: argparse.Namespace, folder: Path) -> str:
    """Both tables; the ratios to the least number of images or workers come with each row."""
    rows: list[list[str]] = []
    counts, prepare_s, trained, epochs_s, shards = [], [], [], [], []
    cohort = folder
    for factor in args.factors:
        images = args.images * factor
        cohort, wall_s, bytes_each = prepared(folder, images, args)
        figures = training(cohort, args.workers[0], args)
        counts.append(images)
        prepare_s.append(wall_s)
        shards.append(bytes_each)
        row = [str(images), f"{wall_s:.1f}", f"{bytes_each / 1000:.1f}"]
        if "images_per_s" in figures:
            rows_each = figures["images"] // args.epochs
            trained.append(rows_each)
            epochs_s.append(rows_each / figures["images_per_s"])
            row += [str(rows_each), f"{epochs_s[-1]:.1f}", f"{figures['images_per_s']:.2f}"]
        rows.append([*row, figures.get("error", "")])
        print(*rows[-1], flush=True)
    header = ("images", "prepare, s", "kB in shards", "trained on", "epoch, s", "images/s", "")
    lines = f"`fetal prepare`: {Line.through(counts, prepare_s)}; "
    lines += f"{statistics.fmean(shards) / 1000:.1f} kB in shards for each"
    if trained:
        lines += f"; an epoch: {Line.through(trained, epochs_s)}"
    of_workers = [[str(n), *_speed(training(cohort, n, args))] for n in args.workers]
    return "\n\n".join(
        [
            f"`python -m bench.scale`, {args.architecture}, {args.size_px} px, batches of "
            f"{args.batch}. {machine()}",
            table(header, rows),
            lines + ".",
            table(("workers on this machine", "images/s", "first step, s", ""), of_workers),
        ]
    )


def _speed(figures: dict[str, Any]) -> list[str]:
    if "images_per_s" not in figures:
        return ["", "", figures.get("error", "one epoch only")]
    return [f"{figures['images_per_s']:.2f}", f"{figures['first_step_s']:.1f}", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="of the smallest cohort")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2, help="the first does not count")
    parser.add_argument("--seconds", dest="timeout", type=float, default=900, help="of a run")
    parser.add_argument("--prefix", default="", help="words before each command, e.g. 'nice'")
    parser.add_argument("--no-results", action="store_true", help="only print them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        text = measure(args, Path(folder))
    print(f"\n{text}")
    if not args.no_results:
        write_section(HEADING, text)


if __name__ == "__main__":
    main()
