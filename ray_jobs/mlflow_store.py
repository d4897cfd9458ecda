"""An MLflow store, opened without long waits or reports to its makers, and what it takes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fetal_core.errors import ConfigError, StorageError

Values = Mapping[str, Any]

# MLflow's own keep a training waiting for minutes, and print lines for each run and tracebacks.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_NAME_CHARS, _PARAM_CHARS, _REASON_CHARS = 250, 6000, 400


def open_store(uri: str, experiment: str) -> tuple[Any, str]:
    """A client, and the id of the experiment, which is created where there is none.

    Raises:
        ConfigError: MLflow, or what it needs for this kind of store, is not installed.
        StorageError: the store does not answer, or the experiment has been deleted.
    """
    # Before the import, which starts a thread that reports each use.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    shown = _without_login(uri)
    try:
        from mlflow.tracking import MlflowClient

        _check_database(uri)
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return client, client.create_experiment(experiment)
    except ImportError as error:
        missing = (error.name or "mlflow").partition(".")[0]
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {shown}, but {missing} is not installed. Install it "
            "(`pip install 'fetal-planes[mlflow]'` for a server or a SQLite file), or unset it."
        ) from None
    except Exception as error:
        raise unusable(uri, error) from None
    if found.lifecycle_stage != "active":
        raise StorageError(
            f"MLflow at {shown}: the experiment {experiment!r} has been deleted. "
            "Restore it, or name another one in MLFLOW_EXPERIMENT_NAME."
        )
    return client, found.experiment_id


def _check_database(uri: str) -> None:
    """Connect once: MLflow would try for minutes."""
    if not uri.startswith(_DATABASES):
        return
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if url.drivername.startswith("sqlite") and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(url)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _without_login(text: str) -> str:
    """The text without names and passwords in its URIs."""
    return re.sub(r"//[^/\s]*@", "//", text)


def failure(uri: str, error: Exception) -> str:
    """What to say about a store that fails."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"MLflow at {_without_login(uri)} failed: {_without_login(reason)[:_REASON_CHARS]}"


def unusable(uri: str, error: Exception) -> StorageError:
    """The error of a run that has not begun yet."""
    return StorageError(
        f"{failure(uri, error)}\n"
        "Start or mend it, correct MLFLOW_TRACKING_URI, or unset it to go without."
    )


def metrics_of(record: Values, step: int = 0, prefix: str = "") -> list[Any]:
    """The numbers of a record as MLflow's metrics."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [
        Metric(_name(prefix + key), float(value), now_ms, step)
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def params_of(settings: Values) -> list[Any]:
    """Settings, by dotted name, as MLflow's params; other values than text as JSON."""
    from mlflow.entities import Param

    values = {_name(key): value[:_PARAM_CHARS] for key, value in _flat(settings)}
    return [Param(key, value) for key, value in values.items()]


def _name(text: str) -> str:
    """With only those characters that MLflow takes."""
    return re.sub(r"[^\w\-./ :]", "_", text)[:_NAME_CHARS]


def _flat(settings: Values, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)
