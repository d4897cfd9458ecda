"""``fetal link``: an address under which a browser shows a report that lies in S3."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from fetal_core import objects, storage
from fetal_core.errors import ConfigError, StorageError
from ray_jobs.command import parse_args, stage
from ray_jobs.console import console

MAX_HOURS = 168
"""A signature of S3 holds for a week at the most."""


@dataclass
class LinkArgs:
    """Print an address for a file in S3 that works without credentials until it expires.

    Whoever has the address can read the file.
    """

    file: tyro.conf.Positional[str]
    """s3://BUCKET/KEY, as `fetal evaluate` printed it for its report."""
    hours: float = 24
    """For how long; a role's temporary credentials may end it sooner."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(LinkArgs, argv, "fetal link")
    if not 0 < args.hours <= MAX_HOURS:
        raise ConfigError(f"--hours {args.hours:g}: give more than 0 and at most {MAX_HOURS}.")
    if not storage.is_remote(args.file):
        raise ConfigError(f"{args.file}: a local file; open it. Links lead to s3://BUCKET/KEY.")
    if objects.entry(args.file) is None:
        raise StorageError(f"{args.file}: no such file. Check the path.")
    console.file.write(objects.link(args.file, round(args.hours * 3600)) + "\n")


if __name__ == "__main__":
    sys.exit(stage("link"))
