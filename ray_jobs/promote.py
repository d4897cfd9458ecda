"""``fetal promote``: let an alias of the registry point to a version."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from fetal_core.registry import Registry
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say


@dataclass
class PromoteArgs:
    """Let an alias point to a version; endpoints that serve the alias take it up by themselves."""

    model: tyro.conf.Positional[str]
    """Name of the model."""
    version: tyro.conf.Positional[int]
    """Number of the version."""
    alias: str
    """Name of the alias, such as champion."""
    registry: str = "registry"
    """Folder or s3://BUCKET/PREFIX of the registry."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(PromoteArgs, argv, "fetal promote")
    registry = Registry(args.registry)
    before = registry.aliases(args.model).get(args.alias)
    now = registry.promote(args.model, args.version, args.alias).version
    moved = f"version {now}" if before in (None, now) else f"version {before} -> {now}"
    say(f"{args.model}@{args.alias}: {moved}{' (as before)' if before == now else ''}")


if __name__ == "__main__":
    sys.exit(stage("promote"))
