"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file; every test has an experiment of its own in it."""
    return tmp_path_factory.mktemp("mlflow") / "new" / "mlflow.db"


@pytest.fixture
def mlflow_experiment(
    mlflow_db: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment of the test's own, as a user asks for it.

    MLflow keeps files in the current folder.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_db}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
