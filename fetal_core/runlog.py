"""A training run's records on disk: ``metrics.jsonl`` and TensorBoard events."""

from __future__ import annotations

import json
from typing import Any

from fetal_core import storage
from fetal_core.run_context import Event

METRICS = "metrics.jsonl"


class RunLog:
    """Writes what a run reports; a resumed run continues the files of the interrupted one."""

    def __init__(self, run_dir: str, plots: bool = True) -> None:
        """Records go to ``run_dir/metrics.jsonl``, plots to ``run_dir/tensorboard``."""
        self._run_dir = run_dir
        self._plots = plots and not storage.is_remote(run_dir)
        self._records: list[dict[str, Any]] = []
        self._board: Any = None

    def __call__(self, event: Event) -> None:
        """Take an event of a run context."""
        if event["kind"] == "start":
            probed = [record for record in read_history(self._run_dir) if "phase" in record]
            self._records = [*probed, *event["history"]]
            if self._records:
                # A process that died may not have written its last epoch.
                self._write()
        elif event["kind"] == "epoch":
            self._add([{key: value for key, value in event.items() if key != "kind"}])
        elif event["kind"] == "probe":
            # A head that was lost before its checkpoint is trained again.
            self._records = [record for record in self._records if "phase" not in record]
            self._add([{"phase": "probe", **record} for record in event["history"]])

    def close(self) -> None:
        """Flush the plots."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _add(self, records: list[dict[str, Any]]) -> None:
        self._records += records
        self._write()
        for record in records:
            self._plot(record)

    def _write(self) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in self._records)
        storage.write_bytes(storage.join(self._run_dir, METRICS), lines.encode())

    def _plot(self, record: dict[str, Any]) -> None:
        if not self._plots:
            return
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = storage.join(self._run_dir, "tensorboard")
            self._board = SummaryWriter(folder)
        phase = f"{record['phase']}/" if "phase" in record else ""
        for key, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{phase}{key}", value, record["epoch"])


def training_history(run_dir: str) -> list[dict[str, Any]]:
    """Epochs of fine-tuning, or of the linear head where nothing else was trained."""
    records = read_history(run_dir)
    return [record for record in records if "phase" not in record] or records


def read_history(run_dir: str) -> list[dict[str, Any]]:
    """Records of ``metrics.jsonl``; empty where there is none."""
    uri = storage.join(run_dir, METRICS)
    if not storage.is_file(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()]
