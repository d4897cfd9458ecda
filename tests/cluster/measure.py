"""`fetal prepare` and `fetal train` on one and on two hosts of this machine: the cost of hosts.

    python tests/cluster/measure.py DATA --images 3000

DATA is a folder such as `fetal phantom` draws. Both hosts compute on the same processors, so that
two are no faster than one: what differs is what working together costs.
"""

from __future__ import annotations

import argparse
import csv
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clusters import Cluster, s3_store, train_command
from hosts import network


def subset(data: Path, images: int, folder: Path) -> None:
    """The first rows of a cohort's table and their images, as links."""
    (folder / "images").mkdir()
    with (data / "labels.csv").open() as file:
        rows = list(csv.reader(file, delimiter=";"))
    kept = [rows[0], *rows[1 : images + 1]]
    lines = "".join(";".join(row) + "\n" for row in kept)
    (folder / "labels.csv").write_text(lines)
    for row in kept[1:]:
        (folder / f"images/{row[0]}.png").symlink_to((data / f"images/{row[0]}.png").resolve())


@contextmanager
def timed(what: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started_s:.1f} s", flush=True)


def run(cluster: Cluster, what: str, *words: str) -> None:
    with timed(what):
        code, output = cluster.head.run(*words, timeout_s=3600)
    assert code == 0, output
    print("   ", "\n    ".join(re.findall(".*images.*", output)), flush=True)


def measure(cluster: Cluster, size_px: int, hosts: int) -> None:
    with timed(f"{hosts} hosts ready"):
        cluster.size(hosts)
    out = f"s3://cohort/prepared{hosts}"
    settings = ("--preprocess.size-px", str(size_px), "--model.weights", "none")
    prepare = ("python", "-m", "ray_jobs.prepare", "s3://cohort/data", "--out", out)
    run(cluster, f"prepare, {hosts} hosts", *prepare, *settings)
    words = ("--cluster.workers", str(hosts), "--train.epochs", "2", "--train.micro-batch", "16")
    command = train_command(f"run{hosts}", *words, prepared=out)
    run(cluster, f"train, {hosts} hosts", *command, "--model.architecture", "squeezenet1_1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size-px", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, network() as net, s3_store(net) as store:
        subset(args.data, args.images, Path(folder))
        with timed(f"{args.images} objects uploaded"):
            store.put(Path(folder), "data")
        cluster = Cluster(net, store)
        for hosts in (1, 2):
            measure(cluster, args.size_px, hosts)


if __name__ == "__main__":
    main()
