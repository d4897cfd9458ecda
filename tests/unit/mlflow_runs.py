"""What lies in the MLflow store of a test."""

from __future__ import annotations

import os
from typing import Any

from mlflow.tracking import MlflowClient

FOLDER = '/data/runs/it\'s "one"'


PARAMS = {"optim": {"lr": 0.01, "name": "sgd"}, "cluster": {"workers": 1}}


def runs() -> list[Any]:
    """All runs of the test's experiment, the oldest first."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


def points(run_id: str, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def epoch(number: int, **values: float) -> dict[str, Any]:
    return {"epoch": number, "val_loss": 1 / number, "is_best": 1.0, **values}
