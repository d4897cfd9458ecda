"""The Ray task that writes a shard; apart, so that its workers need not import torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import ray.util

from fetal_core.errors import DataError, FetalError, Problem, StoreAwayError
from fetal_core.images import ImageLimits
from fetal_core.preprocess import PreprocessConfig
from fetal_core.shard_files import write_shard
from fetal_core.shards import ShardFile, ShardTask

STORE_AWAY = "store-away"


def run(
    row: dict[str, Any], root: str, out: str, preprocess: dict[str, Any], limits: dict[str, Any]
) -> dict[str, Any]:
    """Write one shard; findings travel as data, since Ray rewraps exceptions.

    Args:
        row: ``task``, a ``ShardTask`` as JSON.
        root: folder of the images.
        out: folder of the shards.
        preprocess: fields of ``PreprocessConfig``.
        limits: fields of ``ImageLimits``.

    Returns:
        ``file``, the written ``ShardFile`` as JSON or empty, ``problems``, a JSON list, and
        ``machine``, the address of the one that wrote it.
    """
    written, problems = _write(row, root, out, preprocess, limits)
    return {
        "file": "" if written is None else json.dumps(asdict(written)),
        "problems": json.dumps([asdict(problem) for problem in problems]),
        "machine": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
    }


def _write(
    row: dict[str, Any], root: str, out: str, preprocess: dict[str, Any], limits: dict[str, Any]
) -> tuple[ShardFile | None, list[Problem]]:
    values = json.loads(row["task"])
    task = ShardTask(values["part"], values["index"], tuple(values["rows"]))
    try:
        file = write_shard(task, root, out, PreprocessConfig(**preprocess), ImageLimits(**limits))
    except DataError as error:
        return None, list(error.problems)
    except StoreAwayError as error:
        return None, [Problem(STORE_AWAY, task.file, str(error), "Run the same command again.")]
    except FetalError as error:
        return None, [Problem("shard-not-written", task.file, str(error), "Mend it and run again.")]
    return file, []
