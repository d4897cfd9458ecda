"""Speed and memory of `fetal prepare` beside a bare loop over the same files.

    python -m bench.prepare DATA --size-px 256 --rounds 3
    python -m bench.prepare DATA --size-px 256 --rounds 3 --s3 s3://BUCKET/PREFIX

Each round times, in turn, two processes that only read, decode and resize every file, and the
shard stage of `fetal prepare` (on a Ray that has been started). The ratio of the medians counts.
With `--s3`, the images are copied there first, and each round times the shard stage from the disk
to the disk and from S3 to S3 instead, in alternating order.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fetal_core import images, storage
from fetal_core.audit import audit
from fetal_core.manifest import Manifest
from fetal_core.preprocess import PreprocessConfig, preprocess
from fetal_core.recipe import Recipe
from ray_jobs.cluster import connected
from ray_jobs.prepare import write_shards


def bare(job: tuple[str, int]) -> int:
    path, size_px = job
    data = Path(path).read_bytes()
    return preprocess(images.decode(data), PreprocessConfig(size_px=size_px)).size


def bare_loop(paths: list[str], size_px: int) -> float:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(bare, [(paths[0], size_px)] * 2)
        started = time.perf_counter()
        for _ in pool.imap_unordered(bare, [(path, size_px) for path in paths], chunksize=32):
            pass
        return time.perf_counter() - started


def peak_mib() -> dict[str, float]:
    """Peak resident memory of this process, of its largest child that ended, of Ray's workers."""
    parents, peaks, names = {}, {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue
        pid = int(fields["Pid"])
        parents[pid], names[pid] = int(fields["PPid"]), fields["Name"].strip()
        peaks[pid] = int(fields.get("VmHWM", "0 kB").split()[0]) / 1024
    mine = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= grown
    workers = [peaks[pid] for pid in mine if names[pid].startswith("ray::")]
    return {
        "driver": peaks[os.getpid()],
        "largest audit process": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "largest Ray worker": max(workers, default=0.0),
    }


def shard_stage(manifest: Manifest, out: str, recipe: Recipe) -> float:
    """Images a second."""
    started = time.perf_counter()
    write_shards(manifest, {"all": manifest.ids}, "bench", out, recipe)
    return len(manifest) / (time.perf_counter() - started)


def copy(manifest: Manifest, to: str) -> Manifest:
    """The images in a bucket."""
    paths = dict.fromkeys(manifest.table["path"].to_pylist())
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda path: storage.upload(Path(manifest.root, path), storage.join(to, path)),
                paths,
            )
        )
    return dataclasses.replace(manifest, root=to)


def compare_with_s3(manifest: Manifest, recipe: Recipe, uri: str, rounds: int) -> None:
    remote = copy(manifest, storage.join(uri, "cohort"))
    speeds: dict[str, list[float]] = {"disk": [], "S3": []}
    with connected():
        for round_number in range(rounds):
            for place in sorted(speeds, reverse=bool(round_number % 2)):
                with tempfile.TemporaryDirectory() as folder:
                    there = place == "S3"
                    out = storage.join(uri, f"round-{round_number}") if there else folder
                    speed = shard_stage(remote if there else manifest, out, recipe)
                    speeds[place].append(speed)
                    if there:
                        storage.remove(out)
            disk, s3 = speeds["disk"][-1], speeds["S3"][-1]
            print(
                f"round {round_number + 1}: disk {disk:.0f}, S3 {s3:.0f} images/s, "
                f"ratio {s3 / disk:.2f}",
                flush=True,
            )
    ratios = [s3 / disk for disk, s3 in zip(speeds["disk"], speeds["S3"], strict=True)]
    print(f"median of the rounds' ratios {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--s3", help="s3://BUCKET/PREFIX to compare the disk with")
    args = parser.parse_args()
    recipe = Recipe(preprocess=PreprocessConfig(size_px=args.size_px))
    started = time.perf_counter()
    manifest = audit(args.data, recipe.labels, recipe.limits).raise_on_error()
    audit_s = time.perf_counter() - started
    paths = [manifest.uri(row) for row in range(len(manifest))]
    print(f"{len(paths)} images; audit {len(paths) / audit_s:.0f} images/s", flush=True)
    if args.s3 is not None:
        compare_with_s3(manifest, recipe, args.s3, args.rounds)
        return
    loops, ours = [], []
    with connected():
        for round_number in range(args.rounds):
            loops.append(len(paths) / bare_loop(paths, args.size_px))
            with tempfile.TemporaryDirectory() as out:
                ours.append(shard_stage(manifest, out, recipe))
            print(
                f"round {round_number + 1}: bare loop {loops[-1]:.0f}, "
                f"prepare {ours[-1]:.0f} images/s, ratio {ours[-1] / loops[-1]:.2f}",
                flush=True,
            )
        ratio = statistics.median(ours) / statistics.median(loops)
        print(f"ratio of the medians {ratio:.2f}")
        for name, mib in peak_mib().items():
            print(f"peak memory, {name}: {mib:.0f} MiB")


if __name__ == "__main__":
    main()
