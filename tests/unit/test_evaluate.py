"""The evaluation of a part: figures, selection, mistakes and the JSON form."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fetal_core.errors import DataError
from fetal_core.evaluate import EvaluateConfig, Evaluation, evaluate
from fetal_core.metrics import Predictions, summary
from prediction_samples import CLASSES, sample_predictions

CONFIG = EvaluateConfig(resamples=200, worst=5)


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    return sample_predictions()


@pytest.fixture(scope="module")
def evaluation(predictions: Predictions) -> Evaluation:
    return evaluate(predictions, temperature=1.5, threshold=0.7, config=CONFIG)


def test_figures_are_those_of_the_calibrated_probabilities(
    predictions: Predictions, evaluation: Evaluation
) -> None:
    labels_N = predictions.labels_N
    assert evaluation.summary == summary(labels_N, predictions.probabilities_NK(1.5))
    assert evaluation.before == summary(labels_N, predictions.probabilities_NK())
    assert evaluation.summary.accuracy == evaluation.before.accuracy
    assert evaluation.confusion_KK.sum() == evaluation.images == 400
    assert evaluation.patients == len(set(predictions.patients))


def test_selection_counts_accepted_images_and_their_errors(
    predictions: Predictions, evaluation: Evaluation
) -> None:
    probabilities_NK = predictions.probabilities_NK(1.5)
    accepted_N = probabilities_NK.max(axis=1) >= 0.7
    wrong_N = probabilities_NK.argmax(axis=1) != predictions.labels_N
    selective = evaluation.selective
    assert selective.accepted == accepted_N.sum()
    assert selective.errors == (accepted_N & wrong_N).sum()
    assert selective.coverage == pytest.approx(accepted_N.mean())
    assert selective.error == pytest.approx(wrong_N[accepted_N].mean())
    low, high = evaluation.bootstrap.intervals["accepted_error"]
    assert low < selective.error < high


def test_risk_coverage_curve_ends_at_the_plain_error(evaluation: Evaluation) -> None:
    curve = np.array(evaluation.selective.curve)
    assert curve[-1, 1] == 1
    assert curve[-1, 2] == pytest.approx(1 - evaluation.summary.accuracy)
    assert (np.diff(curve[:, 0]) < 0).all()
    assert (np.diff(curve[:, 1]) > 0).all()


def test_without_threshold_everything_goes_to_review(predictions: Predictions) -> None:
    found = evaluate(predictions, 1.0, None, CONFIG)
    assert (found.selective.accepted, found.selective.coverage) == (0, 0)
    assert found.selective.error is None
    assert "accepted_error" not in found.bootstrap.intervals


def test_worst_mistakes_are_the_most_confident_ones(
    predictions: Predictions, evaluation: Evaluation
) -> None:
    probabilities_NK = predictions.probabilities_NK(1.5)
    wrong_N = probabilities_NK.argmax(axis=1) != predictions.labels_N
    expected = np.sort(probabilities_NK.max(axis=1)[wrong_N])[::-1][:5]
    assert [m.confidence for m in evaluation.mistakes] == pytest.approx(expected.tolist())
    for mistake in evaluation.mistakes:
        row = predictions.image_ids.index(mistake.image_id)
        assert mistake.label == CLASSES[predictions.labels_N[row]]
        assert mistake.predicted == CLASSES[probabilities_NK[row].argmax()] != mistake.label


def test_json_form_is_complete_and_strict(evaluation: Evaluation) -> None:
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    found = json.loads(text)
    assert found["accuracy"] == evaluation.summary.accuracy
    assert found["intervals"]["accuracy"] == list(evaluation.bootstrap.intervals["accuracy"])
    assert found["interval_method"]["unit"] == "patient"
    assert (found["images"], found["patients"]) == (400, evaluation.patients)
    assert set(found["per_class"]) == set(CLASSES)
    assert set(found["per_class"]["Other"]["intervals"]) == {"precision", "recall", "f1", "auroc"}
    assert found["calibration"]["ece_before"] == evaluation.before.ece
    assert found["calibration"]["ece_after"] == evaluation.summary.ece
    assert len(found["worst_mistakes"]) == 5
    assert not any("/" in name for name in found["intervals"])


def test_absent_class_and_unknown_patients_are_null_not_a_crash() -> None:
    part = sample_predictions(classes=(*CLASSES, "Rare"))
    kept = [row for row in range(len(part)) if part.labels_N[row] != 3]
    part = Predictions(
        image_ids=tuple(part.image_ids[row] for row in kept),
        patients=(None,) * len(kept),
        labels_N=part.labels_N[kept],
        logits_NK=part.logits_NK[kept],
        classes=part.classes,
    )
    found = evaluate(part, 1.0, 0.5, CONFIG)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["per_class"]["Rare"]["recall"] is None
    assert written["per_class"]["Rare"]["support"] == 0
    assert written["patients"] is None
    assert written["interval_method"]["unit"] == "image"
    assert found.roc[3] is None


def test_empty_part_is_an_error_that_says_how_to_mend_it(predictions: Predictions) -> None:
    empty = replace(
        predictions,
        image_ids=(),
        patients=(),
        labels_N=predictions.labels_N[:0],
        logits_NK=predictions.logits_NK[:0],
    )
    with pytest.raises(DataError, match=r"empty-part.*larger share"):
        evaluate(empty, 1.0, 0.5, CONFIG)


def test_one_image_is_enough() -> None:
    part = Predictions(
        ("a.png",), ("P1",), np.array([0]), np.array([[2.0, 0.0]], dtype=np.float32), ("x", "y")
    )
    found = evaluate(part, 1.0, 0.5, CONFIG)
    assert (found.summary.accuracy, found.mistakes) == (1.0, ())
    assert found.bootstrap.intervals == {}
    json.dumps(found.to_json(), allow_nan=False)
