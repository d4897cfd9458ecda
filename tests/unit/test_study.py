"""Comparison of arms: known truths, an independent bootstrap, symmetry and what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetal_core.bootstrap import PairedConfusions, clusters, draws
from fetal_core.metrics import Predictions
from fetal_core.study import (
    TrialPredictions,
    compare,
    verdict,
)
from study_samples import (
    PATIENTS,
    SEARCH,
    SEEDS,
    STUDY,
    answers,
    part,
    rows_of,
    study_of,
    sweep,
)


def drawn_rows(predictions: Predictions, generator: np.random.Generator) -> np.ndarray:
    names = np.array(predictions.patients)
    drawn = generator.choice(np.unique(names), len(np.unique(names)))
    return np.concatenate([np.flatnonzero(names == name) for name in drawn])


def plain_score(predictions: Predictions, rows: np.ndarray, measure: str) -> float:
    labels, answers = predictions.labels_N[rows], predictions.logits_NK[rows].argmax(axis=1)
    if measure != "macro_f1":
        return float(np.mean(labels == answers))
    scores = []
    for label in set(labels.tolist()):
        hits = np.sum((labels == label) & (answers == label))
        precision, recall = hits / max(np.sum(answers == label), 1), hits / np.sum(labels == label)
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return float(np.mean(scores))


def plain_difference(
    found: Mapping[int, TrialPredictions], val: np.ndarray, train: np.ndarray, measure: str
) -> float:
    """Arm (trials 2, 3) minus other (6, 7), written out."""
    means = []
    for numbers in ((2, 3), (6, 7)):
        scores = []
        for number in numbers:
            score = plain_score(found[number].val, val, measure)
            if measure == "gap":
                score = plain_score(found[number].train, train, measure) - score
            scores.append(score)
        means.append(sum(scores) / 2)
    return means[0] - means[1]


@pytest.mark.parametrize("measure", ["accuracy", "macro_f1", "gap"])
def test_difference_and_interval_agree_with_a_plain_loop(measure: str) -> None:
    found = answers({"deep": 0.8, "wide": 0.7}, {"deep": 0.9, "wide": 0.85})
    result = compare(sweep(), SEARCH, study_of(measure), found).hypotheses[0]
    val, train = found[2].val, found[2].train
    everyone = plain_difference(found, np.arange(len(val)), np.arange(len(train)), measure)
    assert result.difference == pytest.approx(everyone)
    generator = np.random.default_rng(7)
    drawn = [
        plain_difference(found, drawn_rows(val, generator), drawn_rows(train, generator), measure)
        for _ in range(400)
    ]
    spread = np.std(drawn)
    assert result.interval is not None
    for end, quantile in zip(result.interval, np.quantile(drawn, [0.025, 0.975]), strict=True):
        # A 2.5 % quantile of 400 normal draws has a standard error of 0.13 deviations.
        assert abs(end - quantile) < 0.45 * spread


@pytest.mark.parametrize(
    ("deep", "wide", "expected"),
    [(0.9, 0.6, "supported"), (0.6, 0.9, "refuted"), (0.75, 0.75, "undecided")],
)
def test_a_known_difference_is_found(deep: float, wide: float, expected: str) -> None:
    found = answers({"deep": deep, "wide": wide})
    assert compare(sweep(), SEARCH, STUDY, found).hypotheses[0].verdict == expected


def test_intervals_cover_the_true_difference_about_as_often_as_promised() -> None:
    covered = 0
    study = study_of("accuracy", resamples=200)
    for repeat in range(100):
        shift = {
            number: TrialPredictions(
                part(0.8 if number < 4 else 0.7, 1000 * repeat + number), part(0.8, number, "T")
            )
            for number in (2, 3, 6, 7)
        }
        interval = compare(sweep(), SEARCH, study, shift).hypotheses[0].interval
        assert interval is not None
        covered += interval[0] <= 0.1 <= interval[1]
    assert 88 <= covered <= 100


def test_identical_arms_are_undecided_with_no_difference_at_all() -> None:
    found = answers({"deep": 0.8, "wide": 0.7})
    found |= {6: found[2], 7: found[3]}
    for measure in ("accuracy", "macro_f1", "gap"):
        result = compare(sweep(), SEARCH, study_of(measure), found).hypotheses[0]
        assert (result.verdict, result.difference, result.interval) == ("undecided", 0, (0, 0))


@pytest.mark.parametrize("measure", ["accuracy", "macro_f1", "gap"])
def test_swapped_arms_give_the_mirrored_interval(measure: str) -> None:
    found = answers({"deep": 0.9, "wide": 0.7}, {"deep": 0.95, "wide": 0.95})
    straight = compare(sweep(), SEARCH, study_of(measure), found).hypotheses[0]
    swapped = compare(sweep(), SEARCH, study_of(measure, "wide", "deep"), found).hypotheses[0]
    assert straight.difference is not None
    assert straight.interval is not None
    low, high = straight.interval
    assert swapped.difference == -straight.difference
    assert swapped.interval == (-high, -low)
    assert {straight.verdict, swapped.verdict} == {"supported", "refuted"}


def test_pairing_narrows_the_interval_where_both_arms_fail_on_the_same_patients() -> None:
    found = answers({"deep": 0.7, "wide": 0.7})
    paired = {number: replace(one, val=found[2].val) for number, one in found.items()}
    wrong = found[2].val.logits_NK.copy()
    wrong[0] = np.eye(3)[(found[2].val.labels_N[0] + 2) % 3]
    paired[2] = replace(paired[2], val=replace(found[2].val, logits_NK=wrong))
    widths = []
    for predictions in (paired, found):
        interval = compare(sweep(), SEARCH, STUDY, predictions).hypotheses[0].interval
        assert interval is not None
        widths.append(interval[1] - interval[0])
    assert widths[0] < 0.2 * widths[1]


def test_gap_is_training_minus_validation_accuracy_over_seeds() -> None:
    found = answers({"deep": 0.8, "wide": 0.6}, {"deep": 0.85, "wide": 0.95})
    result = compare(sweep(), SEARCH, study_of("gap", "wide", "deep"), found)
    deep, wide = result.arms
    for arm, numbers in ((deep, (2, 3)), (wide, (6, 7))):
        train, val = (
            [float(np.mean(p.logits_NK.argmax(axis=1) == p.labels_N)) for p in parts]
            for parts in ([found[n].train for n in numbers], [found[n].val for n in numbers])
        )
        gaps = np.subtract(train, val)
        assert arm.figures["train_accuracy"].by_seed == pytest.approx(train)
        assert arm.figures["gap"].mean == pytest.approx(gaps.mean())
        assert arm.figures["gap"].deviation == pytest.approx(gaps.std(ddof=1))
    assert result.hypotheses[0].verdict == "supported"


def test_one_arms_draws_are_those_of_the_bootstrap() -> None:
    predictions = part(0.8, 1)
    cluster_N, _ = clusters(predictions.patients)
    expected = draws(predictions.labels_N, predictions.probabilities_NK(), cluster_N, {}, 50, 3)
    matrices_RKK = PairedConfusions([predictions]).draws(50, np.random.default_rng(3))[1:, 0]
    hits_R = np.trace(matrices_RKK, axis1=1, axis2=2)
    assert hits_R / matrices_RKK.sum(axis=(1, 2)) == pytest.approx(expected["accuracy"])


def test_trials_that_saw_different_images_are_paired_by_patient() -> None:
    found = answers({"deep": 0.9, "wide": 0.6})
    full = compare(sweep(), SEARCH, STUDY, found)
    halves = {
        number: replace(one, val=rows_of(one.val, [r for r in range(160) if r % 2 == number % 2]))
        for number, one in found.items()
    }
    half = compare(sweep(), SEARCH, STUDY, halves)
    assert half.patients == full.patients == PATIENTS
    for arm, number in zip(half.arms, (2, 6), strict=True):
        own = halves[number].val
        accuracy = np.mean(own.logits_NK.argmax(axis=1) == own.labels_N)
        assert arm.figures["accuracy"].by_seed[0] == pytest.approx(accuracy)
    assert half.hypotheses[0].verdict == "supported"


def test_order_of_trials_and_images_does_not_matter() -> None:
    found = answers({"deep": 0.8, "wide": 0.7})
    mixed = {
        number: replace(one, val=rows_of(one.val, list(range(len(one.val)))[::-1]))
        for number, one in reversed(found.items())
    }
    assert compare(sweep()[::-1], SEARCH, STUDY, mixed) == compare(sweep(), SEARCH, STUDY, found)


def test_arm_result_tells_what_was_chosen_and_from_how_many() -> None:
    arm = compare(sweep(), SEARCH, STUDY, answers({"deep": 0.8, "wide": 0.7})).arms[1]
    assert (arm.name, arm.settings, arm.seeds) == ("wide", {"optim.lr": 0.1}, SEEDS)
    assert (arm.trials, arm.complete, arm.candidates) == ((6, 7), 2, 2)
    assert (arm.parameters, arm.work_s, arm.best_epoch) == (1000, 10.5, 3.5)
    assert arm.edges == ("optim.lr",)


def test_missing_or_contradictory_predictions_are_refused() -> None:
    found = answers({"deep": 0.8, "wide": 0.7})
    with pytest.raises(ValueError, match="no predictions of trials 3, 7"):
        compare(sweep(), SEARCH, STUDY, {2: found[2], 6: found[6]})
    other = replace(found[3].val, labels_N=(found[3].val.labels_N + 1) % 3)
    with pytest.raises(ValueError, match="disagree about the patient or the label"):
        compare(sweep(), SEARCH, STUDY, found | {3: replace(found[3], val=other)})
    renamed = replace(found[3].val, classes=("a", "b", "c"))
    with pytest.raises(ValueError, match="same classes"):
        compare(sweep(), SEARCH, STUDY, found | {3: replace(found[3], val=renamed)})


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_verdict_agrees_with_the_interval(one: float, two: float) -> None:
    low, high = min(one, two), max(one, two)
    found = verdict((low, high))
    assert (found == "undecided") == (low <= 0 <= high)
    if found != "undecided":
        assert (found == "supported") == (low + high > 0)
        assert verdict((-high, -low)) == {"supported": "refuted", "refuted": "supported"}[found]


def test_json_form_is_strict() -> None:
    result = compare(sweep(), SEARCH, STUDY, answers({"deep": 0.9, "wide": 0.6}))
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["hypotheses"][0]["verdict"] == "supported"
    assert found["hypotheses"][0]["hypothesis"]["arm"] == "deep"
    assert len(found["hypotheses"][0]["interval"]) == 2
    assert found["arms"][0]["figures"]["gap"].keys() == {"mean", "deviation", "by_seed"}


def test_training_and_validation_patients_are_drawn_independently() -> None:
    found = {
        number: TrialPredictions(one.val, part(0.8, 100 * (number - number % 2) + number % 2, "T"))
        for number, one in answers({"deep": 0.8, "wide": 0.8}).items()
    }
    for one in found.values():  # the same answers: with the same draws no gap would ever differ
        assert np.array_equal(one.val.logits_NK, one.train.logits_NK)
    result = compare(sweep(), SEARCH, study_of("gap"), found).hypotheses[0]
    assert result.difference == 0
    assert result.interval is not None
    assert result.interval[0] < -0.02
    assert result.interval[1] > 0.02
