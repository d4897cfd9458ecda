"""Pooling of folds and repeats."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fetal_core.crossval import crossval_summary
from fetal_core.evaluate import EvaluateConfig
from fetal_core.metrics import Predictions, summary
from prediction_samples import sample_predictions

CONFIG = EvaluateConfig(resamples=200)


def fold_of(part: Predictions, rows: list[int], noise: float, seed: int) -> Predictions:
    generator = np.random.default_rng(seed)
    logits_NK = part.logits_NK[rows] + generator.normal(0, noise, (len(rows), len(part.classes)))
    return Predictions(
        image_ids=tuple(part.image_ids[row] for row in rows),
        patients=tuple(part.patients[row] for row in rows),
        labels_N=part.labels_N[rows],
        logits_NK=logits_NK.astype(np.float32),
        classes=part.classes,
    )


def repeated_folds(repeats: int = 3, noise: float = 1.0) -> dict[tuple[int, int], Predictions]:
    whole = sample_predictions(rows=150, patients=30)
    folds = {}
    for repeat in range(repeats):
        numbers = [(int(str(name)[1:]) + repeat) % 3 for name in whole.patients]
        for fold in range(3):
            rows = [row for row, number in enumerate(numbers) if number == fold]
            folds[repeat, fold] = fold_of(whole, rows, noise, seed=10 * repeat + fold)
    return folds


def test_mean_and_spread_are_over_the_pooled_repeats() -> None:
    folds = repeated_folds()
    found = crossval_summary(folds, CONFIG)
    accuracies = []
    for repeat in range(3):
        parts = [part for (own, _), part in folds.items() if own == repeat]
        labels_N = np.concatenate([part.labels_N for part in parts])
        probabilities_NK = np.concatenate([part.probabilities_NK() for part in parts])
        expected = summary(labels_N, probabilities_NK)
        assert found.repeats[repeat].macro_f1 == pytest.approx(expected.macro_f1)
        accuracies.append(expected.accuracy)
    assert found.mean.accuracy == pytest.approx(np.mean(accuracies))
    assert found.spread["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    low, high = found.bootstrap.intervals["accuracy"]
    assert low < found.mean.accuracy < high
    assert found.confusion_KK.sum() == 3 * found.images == 450
    assert list(found.folds) == [(repeat, fold) for repeat in range(3) for fold in range(3)]


def test_equal_repeats_give_the_interval_of_one() -> None:
    once = crossval_summary(repeated_folds(repeats=1, noise=0), CONFIG)
    thrice = crossval_summary(repeated_folds(repeats=3, noise=0), CONFIG)
    for name, interval in once.bootstrap.intervals.items():
        assert thrice.bootstrap.intervals[name] == pytest.approx(interval)
    assert thrice.spread["accuracy"] == pytest.approx(0)
    assert once.spread["accuracy"] is None


def test_json_form_is_strict() -> None:
    found = json.loads(json.dumps(crossval_summary(repeated_folds(), CONFIG).to_json()))
    assert set(found["repeats"]) == {"0", "1", "2"}
    assert len(found["folds"]) == 9
    assert found["interval_method"]["unit"] == "patient"


def test_repeats_over_different_images_are_refused() -> None:
    folds = repeated_folds()
    del folds[1, 2]
    with pytest.raises(ValueError, match="same images"):
        crossval_summary(folds, CONFIG)


def test_an_image_in_two_folds_of_a_repeat_is_refused() -> None:
    folds = repeated_folds()
    folds[0, 3] = folds[0, 0]
    with pytest.raises(ValueError, match="more than once"):
        crossval_summary(folds, CONFIG)
