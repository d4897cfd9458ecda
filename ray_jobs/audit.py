"""``fetal audit``: check images and labels without training, or compare two label tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from fetal_core import storage
from fetal_core.audit import AuditResult, audit
from fetal_core.compare import Comparison, compare_tables
from fetal_core.errors import ConfigError
from ray_jobs.command import parse_args, stage
from ray_jobs.console import progress_bar, say, show_problems
from ray_jobs.job import Job

FOUND = 1


@dataclass
class AuditArgs:
    """Check images and labels: all problems in one run, each with place, reason and remedy."""

    data: tyro.conf.Positional[str]
    """Folder with the images and the label table; with --against, a label table."""
    job: Annotated[Job, tyro.conf.arg(name="")]
    config: str | None = None
    """Named configuration, or path of a .toml file; the flags below override it."""
    against: str | None = None
    """Another label table: list the images that the two label differently."""
    out: str | None = None
    """Write the findings to audit.json in this folder; the manifest comes with `fetal prepare`."""


def main(argv: Sequence[str]) -> int:
    """The command line of this stage: 0 without errors, 1 with some."""
    args = parse_args(AuditArgs, argv, "fetal audit")
    if args.against is not None:
        return show_comparison(args.data, args.against, args.job)
    _check_out(args.out)
    with progress_bar("audit") as progress:
        found = audit(
            args.data,
            args.job.labels,
            args.job.limits,
            progress=progress,
            allow_no_patients=not args.job.split.by_patient,
            use_official_test=args.job.split.use_official_test,
        )
    show(found)
    if args.out is not None:
        _write(found, args.out)
    return FOUND if found.errors else 0


def show(found: AuditResult) -> None:
    """Print findings, counts and classes."""
    show_problems(found.problems, limit=None)
    counts = found.counts
    if counts:
        say(", ".join(f"{number:,} {name}" for name, number in counts.items()))
    if found.manifest is not None:
        say(", ".join(f"{name} {number:,}" for name, number in found.manifest.counts().items()))
        say("no errors: ready for `fetal prepare`")


def show_comparison(first: str, second: str, job: Job) -> int:
    """Print where two tables disagree; 1 if they do, or if one has errors of its own."""
    result: Comparison = compare_tables(first, second, job.labels)
    show_problems(result.problems, limit=None)
    for found in result.disagreements:
        say(
            f"{found.image}: {found.plane_a!r} in {first} (row {found.row_a}), "
            f"{found.plane_b!r} in {second} (row {found.row_b})"
        )
    say(f"{len(result.disagreements)} disagreements in {result.common:,} common images")
    for (ours, theirs), number in result.by_pair.most_common():
        say(f"  {number:>4}  {ours} -> {theirs}")
    say(f"only in {first}: {len(result.only_a):,}; only in {second}: {len(result.only_b):,}")
    faulty = any(problem.severity == "error" for problem in result.problems)
    return FOUND if faulty or result.disagreements else 0


def _check_out(out: str | None) -> None:
    if out is not None and storage.exists(out) and not storage.is_dir(out):
        raise ConfigError(f"--out {out}: is a file. Give a folder.")


def _write(found: AuditResult, out: str) -> None:
    findings = json.dumps([asdict(problem) for problem in found.problems], indent=2)
    storage.write_bytes(storage.join(out, "audit.json"), findings.encode())
    say(f"findings: {storage.join(out, 'audit.json')}")


if __name__ == "__main__":
    sys.exit(stage("audit"))
