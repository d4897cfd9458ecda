"""``fetal phantom``: a synthetic ultrasound cohort in the public database's format."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fetal_core import storage
from fetal_core.errors import ConfigError, FetalError
from fetal_core.phantom import PhantomConfig, write_cohort
from ray_jobs.command import parse_args, stage
from ray_jobs.console import progress_bar, say

RECORD = "phantom.json"
_UPLOADS = 16


@dataclass
class PhantomArgs:
    """Write a synthetic cohort: no patient's data, no download, the same bytes for a seed."""

    out: tyro.conf.Positional[str]
    """Folder or s3://BUCKET/PREFIX to write `images/` and `labels.csv` to."""
    cohort: Annotated[PhantomConfig, tyro.conf.arg(name="")]
    workers: int | None = None
    """Processes; all cores by default."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(PhantomArgs, argv, "fetal phantom")
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: at least one is needed.")
    if not storage.is_remote(args.out):
        phantom_shown(args.cohort, local_folder(args.out), args.workers)
        return
    out = storage.absolute(args.out)
    if storage.is_dir(out) and not storage.is_file(storage.join(out, RECORD)):
        raise FetalError(f"{out} holds other files. Choose a new or empty prefix.")
    with tempfile.TemporaryDirectory(prefix="fetal-phantom-") as folder:
        phantom_shown(args.cohort, Path(folder), args.workers)
        upload_cohort(Path(folder), out)
    say(f"uploaded to {out}")


def upload_cohort(folder: Path, uri: str) -> None:
    """Copy a cohort to a bucket, the label table last.

    Raises:
        FetalError: another cohort lies there.
        StorageError: it cannot be written; the same again completes it.
    """
    record = storage.join(uri, RECORD)
    if storage.is_file(record) and storage.read_bytes(record) != (folder / RECORD).read_bytes():
        raise FetalError(f"{uri} holds another cohort. Choose a new or empty prefix.")
    storage.upload(folder / RECORD, record)
    images = sorted((folder / "images").iterdir())
    targets = [storage.join(uri, "images", file.name) for file in images]
    with ThreadPoolExecutor(_UPLOADS) as pool, progress_bar("upload") as progress:
        for done, _ in enumerate(pool.map(storage.upload, images, targets), 1):
            progress(done, len(images))
    storage.upload(folder / "labels.csv", storage.join(uri, "labels.csv"))


def local_folder(out: str) -> Path:
    """The folder of a command that can only write to a disk.

    Raises:
        ConfigError: ``out`` lies in an object store.
    """
    if storage.is_remote(out):
        raise ConfigError(f"{out}: the demonstration is written to a local folder only. Give one.")
    return Path(storage.join(out))


def phantom_shown(cohort: PhantomConfig, out: Path, workers: int | None = None) -> None:
    """Write a cohort with a progress bar."""
    with progress_bar("phantom") as progress:
        written = write_cohort(cohort, out, workers, progress)
    reused = f" ({written.skipped:,} were there already)" if written.skipped else ""
    say(f"{written.images:,} images of {written.patients:,} patients in {out}{reused}")


if __name__ == "__main__":
    sys.exit(stage("phantom"))
