"""Folds of a cross-validation: trained on some patients, scored on the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from builders import CLASSES, fit_config, toy_store
from fetal_core.folds import fit_fold, probe_fold, shares_features

STORE = toy_store(48, seed=4)
TRAIN, VAL, TEST = STORE.image_ids[:24], STORE.image_ids[24:32], STORE.image_ids[32:]


def features() -> torch.Tensor:
    """Eight numbers an image, of which some tell the label and others do not."""
    noise_NF = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    noise_NF[:, :4] += torch.nn.functional.one_hot(STORE.labels_N, 4)
    return noise_NF * 10


def test_probe_fold_scores_the_test_rows_as_scikit_learn_does() -> None:
    config = fit_config(
        optim={"name": "lbfgs", "weight_decay": 0.05}, train={"mode": "probe", "epochs": 1}
    )
    features_NF = features()
    found = probe_fold(config, STORE, features_NF, CLASSES, TRAIN[::-1], VAL, TEST[::-1])
    scaler = StandardScaler().fit(features_NF[:24])
    reference = LogisticRegression(C=1 / (24 * 0.05), tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(features_NF[:24]), STORE.labels_N[:24])
    expected_NK = reference.predict_proba(scaler.transform(features_NF[32:]))
    np.testing.assert_allclose(found.probabilities_NK(), expected_NK, atol=1e-3)
    assert found.image_ids == tuple(TEST)
    assert found.labels_N.tolist() == STORE.labels_N[32:].tolist()
    assert found.patients == tuple(STORE.patients[32:])
    assert found.classes == CLASSES


def test_probe_fold_does_not_see_the_test_rows() -> None:
    config = fit_config(
        optim={"name": "lbfgs", "weight_decay": 0.05}, train={"mode": "probe", "epochs": 1}
    )
    features_NF = features()
    first = probe_fold(config, STORE, features_NF, CLASSES, TRAIN, VAL, TEST[:8])
    features_NF[40:] = 1e6
    again = probe_fold(config, STORE, features_NF, CLASSES, TRAIN, VAL, TEST[:8])
    np.testing.assert_array_equal(first.logits_NK, again.logits_NK)


def test_fit_fold_learns_and_scores_the_best_epoch() -> None:
    config = fit_config(optim={"name": "adam", "lr": 3e-4}, train={"epochs": 9, "batch_size": 4})
    found = fit_fold(config, STORE, CLASSES, TRAIN, VAL, TEST)
    assert found.image_ids == tuple(TEST)
    assert (found.logits_NK.argmax(1) == found.labels_N).mean() > 0.9


def test_fit_fold_with_binary_cross_entropy_gives_its_probabilities() -> None:
    config = fit_config(loss={"name": "binary_cross_entropy"}, optim={"lr": 1e-9})
    plain = fit_config(optim={"lr": 1e-9})
    sigmoid_NK, raw_NK = (
        fit_fold(each, STORE, CLASSES, TRAIN, VAL, TEST).logits_NK.astype(np.float64)
        for each in (config, plain)
    )
    expected_NK = 1 / (1 + np.exp(-raw_NK))
    np.testing.assert_allclose(np.exp(sigmoid_NK), expected_NK, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "normalise", "shared"),
    [("probe", "imagenet", True), ("probe", "dataset", False), ("finetune", "imagenet", False)],
)
def test_features_are_shared_only_where_they_are_equal_in_all_folds(
    mode: str, normalise: str, shared: bool
) -> None:
    config = fit_config(model={"normalise": normalise}, train={"mode": mode})
    assert shares_features(config) is shared
