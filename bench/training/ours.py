"""`fetal train` itself, with a note of when its events come.

    python -m bench.training.ours PREPARED --runs RUNS [flags of fetal train]

All times count from the start of this process. Events reach it up to 0.25 s after they happened.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import psutil

from bench.training.common import LINE, processor_s

_STARTED_S = psutil.Process().create_time()


@dataclass(frozen=True)
class Seen:
    """An event, the time since the start, and the processor time that had been spent."""

    event: dict[str, Any]
    at_s: float
    spent_s: float


def figures(seen: Sequence[Seen]) -> dict[str, Any]:
    """What the events say."""
    found: dict[str, Any] = {}
    for one in seen:
        found.setdefault(f"first_{one.event['kind']}_s", one.at_s)
    epochs = [one.event for one in seen if one.event["kind"] == "epoch"]
    if len(epochs) > 1:
        rows = [round(record["images_per_s"] * record["train_s"]) for record in epochs]
        later_s = sum(record["train_s"] for record in epochs[1:])
        found |= {"images": sum(rows), "images_per_s": sum(rows[1:]) / later_s}
        found |= processor_time(seen, rows[0])
    for event in (one.event for one in seen):
        if event["kind"] == "start":
            found["precision"] = event["precision"]
        if event["kind"] == "probe":
            seconds = [record["epoch_s"] for record in event["history"]]
            first_s = event["features_s"] + seconds[0]
            found["first_epoch_s"] = first_s
            found["later_epoch_share"] = statistics.median(seconds[1:]) / first_s
    return found


def processor_time(seen: Sequence[Seen], images: int) -> dict[str, float]:
    """For an image, from the first to the last step of each epoch but the first one."""
    steps = next(one.event["steps"] for one in seen if one.event["kind"] == "start")
    spent_s, counted = 0.0, 0
    for epoch in range(2, max(one.event.get("epoch", 0) for one in seen) + 1):
        ends = [one for one in seen if one.event["kind"] == "step" and one.event["epoch"] == epoch]
        if len(ends) > 1:
            spent_s += ends[-1].spent_s - ends[0].spent_s
            counted += ends[-1].event["step"] - ends[0].event["step"]
    return {"cpu_s_per_image": spent_s / (counted * images / steps)} if counted else {}


def main(argv: Sequence[str]) -> None:
    # As `fetal` does: the stage by its own name, imported when it is called.
    stage = import_module("ray_jobs.train")
    console = import_module("ray_jobs.console")
    seen: list[Seen] = []
    args = stage.read_args(argv)
    with console.training_view() as view:

        def note(event: dict[str, Any]) -> None:
            seen.append(Seen(event, time.time() - _STARTED_S, processor_s()))
            view(event)

        job, run_uri = args.job, f"{args.runs}/{args.name}"
        stage.show(stage.train(args.prepared, run_uri, job.recipe(), job.cluster, note))
    found = figures(seen)
    found["wall_s"] = time.time() - _STARTED_S
    if "images" in found:
        found["images_per_s_with_start"] = found["images"] / found["wall_s"]
    print(LINE + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
