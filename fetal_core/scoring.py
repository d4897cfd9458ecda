"""A trained model's scores of the rows of a part, and their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fetal_core import storage
from fetal_core.batches import evaluation_batch, evaluation_rows
from fetal_core.checkpoint import load_weights
from fetal_core.errors import StorageError
from fetal_core.losses import LossName, scores
from fetal_core.metrics import Predictions
from fetal_core.model import ModelConfig, PlaneClassifier
from fetal_core.rows import RowStore


def trained(
    config: ModelConfig, classes: int, mean: float, std: float, checkpoint: Path
) -> PlaneClassifier:
    """The model of a checkpoint, on the CPU, without dropout.

    Args:
        config: the network.
        classes: number of classes.
        mean: of the training part's grey values in [0, 1].
        std: likewise.
        checkpoint: local folder.

    Raises:
        ModelError: no weights there, or of another architecture.
    """
    means, stds = config.statistics(mean, std)
    model = PlaneClassifier(config.architecture, classes, mean=means, std=stds)
    load_weights(checkpoint, model)
    return model


@torch.inference_mode()
def score_rows(
    model: PlaneClassifier, loss: LossName, store: RowStore, classes: tuple[str, ...]
) -> Predictions:
    """Scores of all rows, without augmentation, on the device of the model."""
    model.eval()
    device = model.head.weight.device
    logits = [
        model(store.images(rows_N).to(device).float().div_(255)).cpu()
        for rows_N in evaluation_rows(len(store), 0, 1, evaluation_batch(store.size_px))
    ]
    return predictions(store, scores(torch.cat(logits), loss), classes)


def predictions(store: RowStore, scores_NK: torch.Tensor, classes: tuple[str, ...]) -> Predictions:
    """Scores together with whose they are."""
    return Predictions(
        image_ids=tuple(store.image_ids),
        patients=tuple(store.patients),
        labels_N=store.labels_N.numpy().astype(np.int64),
        logits_NK=scores_NK.numpy().astype(np.float32),
        classes=classes,
    )


def save_predictions(uri: str, found: Predictions) -> None:
    """Write predictions as Parquet.

    Raises:
        StorageError: it cannot be written.
    """
    table = pa.table(
        {
            "image_id": pa.array(found.image_ids, pa.string()),
            "patient": pa.array(found.patients, pa.string()),
            "label": pa.array(found.labels_N),
            "logits": pa.array(list(found.logits_NK), pa.list_(pa.float32())),
        },
        metadata={"classes": "\n".join(found.classes)},
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def load_predictions(uri: str) -> Predictions:
    """Read what ``save_predictions`` wrote.

    Raises:
        StorageError: it is missing or damaged.
    """
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{uri}: not a file of predictions: {error}") from None
    return Predictions(
        image_ids=tuple(table["image_id"].to_pylist()),
        patients=tuple(table["patient"].to_pylist()),
        labels_N=table["label"].to_numpy(),
        logits_NK=np.array(table["logits"].to_pylist(), np.float32),
        classes=tuple(table.schema.metadata[b"classes"].decode().split("\n")),
    )
