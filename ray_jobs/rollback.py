"""``fetal rollback``: let an alias of the registry point to the version before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from fetal_core.registry import Registry
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say


@dataclass
class RollbackArgs:
    """Let an alias point to the version before; each further time, to the one before that."""

    model: tyro.conf.Positional[str]
    """Name of the model."""
    alias: str
    """Name of the alias, such as champion."""
    registry: str = "registry"
    """Folder or s3://BUCKET/PREFIX of the registry."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(RollbackArgs, argv, "fetal rollback")
    registry = Registry(args.registry)
    before = registry.alias_state(args.model, args.alias).version
    now = registry.rollback(args.model, args.alias).version
    say(f"{args.model}@{args.alias}: version {before} -> {now}")


if __name__ == "__main__":
    sys.exit(stage("rollback"))
