"""One fold of a cross-validation: train on some patients, score the others."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from fetal_core.fit_config import FitConfig
from fetal_core.losses import scores
from fetal_core.manifest import Manifest
from fetal_core.metrics import Predictions
from fetal_core.probe import Features, train_head
from fetal_core.rows import RowStore
from fetal_core.run_context import LocalContext
from fetal_core.scoring import predictions, score_rows, trained
from fetal_core.split import make_folds
from fetal_core.train import fit
from fetal_core.training_data import TrainingData

_INNER_FOLDS = 7


def inner_validation(
    manifest: Manifest, image_ids: Sequence[str], seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide a fold's training images by patient into images to train on and to select on."""
    table = manifest.where(sorted(image_ids))
    groups = len(set(table["patient"].to_pylist()) - {None}) or len(image_ids)
    inside = Manifest(table, manifest.classes, manifest.root)
    inner = make_folds(inside, min(_INNER_FOLDS, groups), 1, seed, None not in inside.patients)
    return inner[0].train_ids, inner[0].test_ids


def shares_features(config: FitConfig) -> bool:
    """Whether all folds see the same backbone features, so that one pass over the images serves.

    With normalisation by the training part, they differ from fold to fold.
    """
    return config.train.mode == "probe" and config.model.normalise == "imagenet"


def probe_fold(
    config: FitConfig,
    store: RowStore,
    features_NF: Tensor,
    classes: tuple[str, ...],
    train_ids: Sequence[str],
    val_ids: Sequence[str],
    test_ids: Sequence[str],
) -> Predictions:
    """Train a linear head on features of all rows of ``store`` and score the test rows."""
    row_of = {image_id: row for row, image_id in enumerate(store.image_ids)}

    def part(image_ids: Sequence[str]) -> Features:
        rows_N = torch.tensor(sorted(row_of[image_id] for image_id in image_ids))
        return Features(features_NF[rows_N], store.labels_N[rows_N])

    head = torch.nn.Linear(features_NF.shape[1], len(classes))
    train_head(config, part(train_ids), part(val_ids), head, config.train.epochs)
    test = store.subset(test_ids)
    with torch.inference_mode():
        logits_NK = head(part(test_ids).features_NF)
    return predictions(test, scores(logits_NK, config.loss.name), classes)


def fit_fold(
    config: FitConfig,
    store: RowStore,
    classes: tuple[str, ...],
    train_ids: Sequence[str],
    val_ids: Sequence[str],
    test_ids: Sequence[str],
    device: str = "cpu",
) -> Predictions:
    """Train a whole model, take its best epoch on the validation rows, score the test rows."""
    train, test = store.subset(train_ids), store.subset(test_ids)
    mean, std = train.mean_and_std()
    data = TrainingData(train, store.subset(val_ids), classes, mean, std)
    with tempfile.TemporaryDirectory(prefix="fetal-fold-") as folder:
        context = LocalContext(folder, device)
        fit(config, data, context)
        with context.checkpoints.best() as best:
            model = trained(config.model, len(classes), mean, std, best)
    return score_rows(model.to(device), config.loss.name, test, classes)
