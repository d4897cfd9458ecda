"""``fetal register``: put a model bundle into the registry as a new version."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from fetal_core.registry import Registry
from fetal_core.registry_records import VersionInfo
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say


@dataclass
class RegisterArgs:
    """Copy a model bundle, exported engines included, into the registry as an immutable version."""

    bundle: tyro.conf.Positional[str]
    """Model bundle, as `fetal train` and `fetal evaluate` left it."""
    name: str
    """Name of the model: a-z, 0-9, '.', '_' and '-'."""
    registry: str = "registry"
    """Folder or s3://BUCKET/PREFIX of the registry."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(RegisterArgs, argv, "fetal register")
    registry = Registry(args.registry)
    number = registry.register(args.bundle, args.name)
    info = registry.version(args.name, number)
    say(f"{args.name} version {number}: {registry.bundle_uri(args.name, number)}")
    say(f"{len(info.files)} files, each compared by SHA-256; {_figures(info)}")
    pointing = [alias for alias, at in registry.aliases(args.name).items() if at == number]
    if pointing:
        say(f"this content was registered before; it already has the aliases {', '.join(pointing)}")
        return
    where = "" if args.registry == "registry" else f" --registry {args.registry}"
    say(f"next: fetal promote {args.name} {number} --alias champion{where}")


def _figures(info: VersionInfo) -> str:
    shown = [f"{key.replace('_', ' ')} {value:.3f}" for key, value in info.metrics.items()]
    return ", ".join(shown) or "not evaluated"


if __name__ == "__main__":
    sys.exit(stage("register"))
