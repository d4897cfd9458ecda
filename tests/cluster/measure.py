"""`fetal prepare` and `fetal train` on one and on two hosts of this machine: the cost of hosts.

    python tests/cluster/measure.py DATA --images 3000

DATA is a folder such as `fetal phantom` draws. Both hosts compute on the same processors, so that
two are no faster than one: what differs is what working together costs. Root is needed. Ctrl-C,
SIGTERM and errors end the hosts and remove all that they wrote. With 200 images it takes three
minutes, most of them for starting, with 12,400 about six for each number of hosts.
"""

from __future__ import annotations

import argparse
import csv
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clusters import OBJECT_STORE_BYTES, Cluster, s3_store, train_command
from hosts import missing, network


def subset(data: Path, images: int, folder: Path) -> int:
    """The first rows of a cohort's table and their images, as links; how many there are."""
    (folder / "images").mkdir()
    with (data / "labels.csv").open(newline="") as file:
        header, *rows = csv.reader(file, delimiter=";")
    rows = rows[:images]
    lines = "".join(";".join(row) + "\n" for row in (header, *rows))
    (folder / "labels.csv").write_text(lines)
    for row in rows:
        (folder / f"images/{row[0]}.png").symlink_to((data / f"images/{row[0]}.png").resolve())
    return len(rows)


@contextmanager
def timed(what: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started_s:.1f} s", flush=True)


def run(cluster: Cluster, what: str, limit_s: float, *words: str) -> None:
    with timed(what):
        code, output = cluster.head.run(*words, timeout_s=limit_s)
    if code != 0:
        sys.exit(f"{what}: ended by {code}\n{output}")
    print("   ", "\n    ".join(re.findall(".*images.*", output)), flush=True)


def measure(cluster: Cluster, args: argparse.Namespace, hosts: int) -> None:
    with timed(f"{hosts} hosts ready"):
        cluster.size(hosts)
    out = f"s3://cohort/prepared{hosts}"
    settings = ("--preprocess.size-px", str(args.size_px), "--model.weights", "none")
    prepare = ("python", "-m", "ray_jobs.prepare", "s3://cohort/data", "--out", out)
    run(cluster, f"prepare, {hosts} hosts", args.limit_s, *prepare, *settings)
    words = ("--cluster.workers", str(hosts), "--train.epochs", "2", "--train.micro-batch", "16")
    command = train_command(f"run{hosts}", *words, prepared=out)
    model = ("--model.architecture", "squeezenet1_1")
    run(cluster, f"train, {hosts} hosts", args.limit_s, *command, *model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with images/ and labels.csv")
    parser.add_argument("--images", type=int, default=3000, help="the first rows of the table")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2], help="numbers of hosts")
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--limit-s", type=float, default=3600, help="for each of the commands")
    args = parser.parse_args()
    if reason := missing():
        sys.exit(f"error: {reason}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder, network() as net, s3_store(net) as store:
        images = subset(args.data, args.images, Path(folder))
        if images < args.images:
            print(f"{args.data} has {images} images, fewer than --images {args.images}")
        with timed(f"{images} objects uploaded"):
            store.put(Path(folder), "data")
        # Each host holds all rows in memory, with room to spare: spilling is not what is measured.
        rows_bytes = images * args.size_px**2
        cluster = Cluster(net, store, OBJECT_STORE_BYTES + 2 * rows_bytes)
        for hosts in args.hosts:
            measure(cluster, args, hosts)


if __name__ == "__main__":
    main()
