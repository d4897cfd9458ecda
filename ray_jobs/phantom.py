"""``fetal phantom``: a synthetic ultrasound cohort in the public database's format."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fetal_core import storage
from fetal_core.errors import ConfigError
from fetal_core.phantom import PhantomConfig, write_cohort
from ray_jobs.command import parse_args, stage
from ray_jobs.console import progress_bar, say


@dataclass
class PhantomArgs:
    """Write a synthetic cohort: no patient's data, no download, the same bytes for a seed."""

    out: tyro.conf.Positional[str]
    """Local folder to write `images/` and `labels.csv` to."""
    cohort: Annotated[PhantomConfig, tyro.conf.arg(name="")]
    workers: int | None = None
    """Processes; all cores by default."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(PhantomArgs, argv, "fetal phantom")
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: at least one is needed.")
    phantom_shown(args.cohort, local_folder(args.out), args.workers)


def local_folder(out: str) -> Path:
    """The folder of a command that can only write to a disk.

    Raises:
        ConfigError: ``out`` lies in an object store.
    """
    if storage.is_remote(out):
        raise ConfigError(
            f"{out}: cohorts are written to local folders only; give one and copy it."
        )
    return Path(storage.join(out))


def phantom_shown(cohort: PhantomConfig, out: Path, workers: int | None = None) -> None:
    """Write a cohort with a progress bar."""
    with progress_bar("phantom") as progress:
        written = write_cohort(cohort, out, workers, progress)
    reused = f" ({written.skipped:,} were there already)" if written.skipped else ""
    say(f"{written.images:,} images of {written.patients:,} patients in {out}{reused}")


if __name__ == "__main__":
    sys.exit(stage("phantom"))
