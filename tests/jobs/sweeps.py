"""Settings of small sweeps for the tests of the jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cohorts import recipe
from fetal_core.config import merge, parse
from ray_jobs.prepare import PrepareOutcome
from ray_jobs.sweep import SweepJob
from ray_jobs.tune import tune
from ray_jobs.tune_report import SweepOutcome

SPACE: dict[str, Any] = {
    "optim.name": {"choice": ["sgd", "adamw"]},
    "optim.lr": {"loguniform": [1e-4, 3e-2]},
    "optim.momentum": {"uniform": [0.8, 0.98], "when": {"optim.name": "sgd"}},
}
QUICK = {
    "train": {"epochs": 4, "batch_size": 8},
    "model": {"architecture": "squeezenet1_1"},
}


def job(search: dict[str, Any], settings: dict[str, Any] = QUICK, **tables: Any) -> SweepJob:
    values = recipe(**settings).model_dump(mode="json")
    return parse(SweepJob, merge(values, {"search": search, **tables}), "test")


def sweep_of(
    prepared: PrepareOutcome, folder: Path, wanted: SweepJob, at_once: int = 2
) -> SweepOutcome:
    return tune(prepared.prepared.uri, str(folder), wanted, at_once)
