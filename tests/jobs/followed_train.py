"""Trains as ``fetal train`` does and writes each event of the run to a file, line by line.

A process of its own, so that it can be killed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fetal_core.recipe import Recipe
from fetal_core.run_context import Event
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.train import train


def main(prepared: str, run: str, recipe: str, workers: str, events: str) -> None:
    with Path(events).open("a") as file:

        def write(event: Event) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        settings = Recipe(**json.loads(recipe))
        train(prepared, run, settings, ClusterConfig(workers=int(workers)), write)


if __name__ == "__main__":
    main(*sys.argv[1:])
