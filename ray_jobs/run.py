"""``fetal run``: audit, split, shards, training, evaluation and report in one go."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from fetal_core import storage
from ray_jobs import evaluate, prepare, train
from ray_jobs.cluster import connected
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say
from ray_jobs.job import Job
from ray_jobs.workspace import Run


@dataclass
class RunArgs:
    """From images and labels to an evaluated model; run it again to continue after a stop."""

    data: tyro.conf.Positional[str]
    """Folder with the images and the label table."""
    out: str
    """Folder for everything that is made."""
    job: Annotated[Job, tyro.conf.arg(name="")]
    config: str | None = None
    """Named configuration, or path of a .toml file; the flags below override it."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(RunArgs, argv, "fetal run")
    run_all(args.data, args.out, args.job)


def run_all(data: str, out: str, job: Job) -> Run:
    """All stages on one connection to Ray."""
    recipe = job.recipe()
    prepared_uri, run_uri = storage.join(out, "prepared"), storage.join(out, "run")
    with connected():
        say("1/3 prepare")
        prepare.show(prepare.prepare_shown(data, prepared_uri, recipe))
        say("2/3 train")
        outcome = train.train_shown(prepared_uri, run_uri, recipe, job.cluster)
        train.show(outcome)
        say("3/3 evaluate")
        evaluate.show(evaluate.evaluate_run(run_uri, job.cluster))
    return outcome.run


if __name__ == "__main__":
    sys.exit(stage("run"))
