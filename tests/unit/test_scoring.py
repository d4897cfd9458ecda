"""Scores of a trained model and their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builders import CLASSES, fit_config, toy_data
from fetal_core.errors import StorageError
from fetal_core.run_context import LocalContext
from fetal_core.scoring import load_predictions, save_predictions, score_rows, trained
from fetal_core.train import fit


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_the_best_checkpoint_scores_as_it_validated(tmp_path: Path, loss: str) -> None:
    data, context = toy_data(), LocalContext(tmp_path)
    config = fit_config(loss={"name": loss}, model={"dropout": 0.5})
    progress = fit(config, data, context)
    with context.checkpoints.best() as best:
        model = trained(config.model, len(CLASSES), data.mean, data.std, best)
    found = score_rows(model, config.loss.name, data.val, CLASSES)
    record = progress.history[progress.best_epoch - 1]
    accuracy = np.mean(found.logits_NK.argmax(axis=1) == found.labels_N)
    assert accuracy == pytest.approx(record["val_accuracy"])
    assert found.labels_N.tolist() == data.val.labels_N.tolist()
    with torch.inference_mode():
        logits_NK = model(data.val.images(range(len(data.val))).float() / 255)
    link = torch.softmax if loss == "cross_entropy" else None
    expected_NK = link(logits_NK, 1) if link else torch.sigmoid(logits_NK)
    if link is None:
        expected_NK = expected_NK / expected_NK.sum(1, keepdim=True)
    np.testing.assert_allclose(found.probabilities_NK(), expected_NK, atol=1e-5)


def test_predictions_survive_their_file(tmp_path: Path) -> None:
    data, context = toy_data(), LocalContext(tmp_path / "run")
    config = fit_config(train={"epochs": 1})
    fit(config, data, context)
    with context.checkpoints.best() as best:
        model = trained(config.model, len(CLASSES), data.mean, data.std, best)
    before = score_rows(model, config.loss.name, data.val, CLASSES)
    uri = str(tmp_path / "scores.parquet")
    save_predictions(uri, before)
    after = load_predictions(uri)
    assert (after.image_ids, after.patients, after.classes) == (
        before.image_ids,
        before.patients,
        before.classes,
    )
    np.testing.assert_array_equal(after.logits_NK, before.logits_NK)
    np.testing.assert_array_equal(after.labels_N, before.labels_N)
    (tmp_path / "scores.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(StorageError, match="not a file of predictions"):
        load_predictions(uri)
