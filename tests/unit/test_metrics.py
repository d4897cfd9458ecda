"""Figures of merit against scikit-learn and against definitions written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from fetal_core import metrics
from fetal_core.errors import ModelError
from fetal_core.metrics import Predictions, summary
from prediction_samples import sample_predictions


@pytest.fixture
def predictions() -> Predictions:
    return sample_predictions(classes=("a", "b", "c", "d"))


def test_summary_agrees_with_scikit_learn(predictions: Predictions) -> None:
    labels_N, probabilities_NK = predictions.labels_N, predictions.probabilities_NK()
    predicted_N = probabilities_NK.argmax(axis=1)
    found = summary(labels_N, probabilities_NK)
    assert found.accuracy == pytest.approx(sk.accuracy_score(labels_N, predicted_N))
    balanced = sk.balanced_accuracy_score(labels_N, predicted_N)
    assert found.balanced_accuracy == pytest.approx(balanced)
    assert found.macro_f1 == pytest.approx(sk.f1_score(labels_N, predicted_N, average="macro"))
    area = sk.roc_auc_score(labels_N, probabilities_NK, multi_class="ovr", average="macro")
    assert found.auroc_macro == pytest.approx(area)
    assert found.nll == pytest.approx(sk.log_loss(labels_N, probabilities_NK))
    target_NK = np.eye(4)[labels_N]
    assert found.brier == pytest.approx(((probabilities_NK - target_NK) ** 2).sum() / len(labels_N))


def test_class_rates_agree_with_scikit_learn(predictions: Predictions) -> None:
    labels_N, probabilities_NK = predictions.labels_N, predictions.probabilities_NK()
    predicted_N = probabilities_NK.argmax(axis=1)
    expected = sk.precision_recall_fscore_support(labels_N, predicted_N)
    found = summary(labels_N, probabilities_NK).per_class
    for k, row in enumerate(found):
        rates = (row.precision, row.recall, row.f1, row.support)
        assert rates == pytest.approx([column[k] for column in expected])
        assert row.auroc == pytest.approx(sk.roc_auc_score(labels_N == k, probabilities_NK[:, k]))


def test_confusion_agrees_with_scikit_learn(predictions: Predictions) -> None:
    predicted_N = predictions.logits_NK.argmax(axis=1)
    found_KK = metrics.confusion(predictions.labels_N, predicted_N, 4)
    assert found_KK.dtype == np.int64
    np.testing.assert_array_equal(found_KK, sk.confusion_matrix(predictions.labels_N, predicted_N))


def test_reliability_agrees_with_scikit_learn(predictions: Predictions) -> None:
    labels_N, probabilities_NK = predictions.labels_N, predictions.probabilities_NK()
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    confidence_N = probabilities_NK.max(axis=1)
    accuracy, confidence = calibration_curve(correct_N, confidence_N, n_bins=15)
    found = metrics.reliability(labels_N, probabilities_NK)
    filled = found.count_B > 0
    np.testing.assert_allclose(found.accuracy_B[filled], accuracy)
    np.testing.assert_allclose(found.confidence_B[filled], confidence)
    shares = found.count_B[filled] / len(labels_N)
    assert found.ece == pytest.approx(np.sum(shares * np.abs(accuracy - confidence)))


def test_certain_answers_belong_to_the_last_bin() -> None:
    found = metrics.reliability(np.array([0, 0]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert found.count_B[-1] == 2
    assert found.ece == pytest.approx(0.5)


def test_absent_and_never_predicted_classes() -> None:
    labels_N = np.array([0, 0, 1])
    probabilities_NK = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    found = summary(labels_N, probabilities_NK)
    never_predicted, absent = found.per_class[1], found.per_class[2]
    assert (never_predicted.precision, never_predicted.recall, never_predicted.f1) == (0, 0, 0)
    assert never_predicted.auroc == 1
    assert (absent.precision, absent.recall, absent.f1, absent.auroc) == (None,) * 4
    assert absent.support == 0
    assert found.balanced_accuracy == pytest.approx(0.5)
    assert found.macro_f1 == pytest.approx(
        sk.f1_score(labels_N, [0, 0, 0], labels=[0, 1], average="macro", zero_division=0)
    )


def test_single_class_has_no_auroc() -> None:
    found = summary(np.zeros(3, dtype=np.int64), np.tile([0.9, 0.1], (3, 1)))
    assert found.auroc_macro is None
    assert found.accuracy == 1


@given(st.data())
def test_weighted_auroc_agrees_with_scikit_learn(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 40))
    positive_N = data.draw(hnp.arrays(bool, rows))
    scores_N = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 5))) / 5
    weights_N = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 4))) * 1.0
    found = metrics.auroc(positive_N, scores_N, weights_N[None])[0]
    kept = weights_N > 0
    if len(set(positive_N[kept])) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(
            sk.roc_auc_score(positive_N[kept], scores_N[kept], sample_weight=weights_N[kept])
        )


@given(st.data())
def test_roc_curve_has_the_area_of_auroc(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 60))
    positive_N = np.r_[True, False, data.draw(hnp.arrays(bool, rows))]
    scores_N = data.draw(hnp.arrays(np.float64, rows + 2, elements=st.sampled_from([0, 0.3, 0.9])))
    false_rate, true_rate = metrics.roc_curve(positive_N, scores_N)
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    area = metrics.auroc(positive_N, scores_N, np.ones((1, rows + 2)))[0]
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(area)


def test_nll_of_logits_survives_underflow() -> None:
    logits_NK = np.array([[0.0, 2000.0]], dtype=np.float32)
    assert metrics.nll_of_logits(np.array([0]), logits_NK) == pytest.approx(2000)


def test_temperature_keeps_the_order_and_sums_to_one(predictions: Predictions) -> None:
    cold_NK, hot_NK = predictions.probabilities_NK(0.5), predictions.probabilities_NK(3.0)
    np.testing.assert_array_equal(cold_NK.argmax(axis=1), hot_NK.argmax(axis=1))
    np.testing.assert_allclose(cold_NK.sum(axis=1), 1)
    assert (cold_NK.max(axis=1) > hot_NK.max(axis=1)).all()
    with pytest.raises(ValueError, match="positive"):
        predictions.probabilities_NK(0)


def test_predictions_refuse_what_does_not_fit(predictions: Predictions) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        replace(predictions, patients=predictions.patients[:-1])
    with pytest.raises(ValueError, match="logits"):
        replace(predictions, logits_NK=predictions.logits_NK[:, :3])
    with pytest.raises(ValueError, match="labels must lie"):
        replace(predictions, labels_N=predictions.labels_N + 1)
    twice = (*predictions.image_ids[:-1], predictions.image_ids[0])
    with pytest.raises(ValueError, match="more than once"):
        replace(predictions, image_ids=twice)


def test_predictions_name_images_with_non_finite_scores(predictions: Predictions) -> None:
    logits_NK = predictions.logits_NK.copy()
    logits_NK[7, 1] = np.nan
    with pytest.raises(ModelError, match=r"1 of 400 images \(image_7\.png\)"):
        replace(predictions, logits_NK=logits_NK)


def test_concatenate_refuses_repeats_and_other_classes(predictions: Predictions) -> None:
    with pytest.raises(ValueError, match="more than once"):
        metrics.concatenate([predictions, predictions])
    with pytest.raises(ValueError, match="same classes"):
        metrics.concatenate([predictions, replace(predictions, classes=("a", "b", "c", "e"))])
