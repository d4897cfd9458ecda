"""Hypotheses about the arms of a sweep: each arm at its best settings, over seeds, by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np

from fetal_core.arms import SEED, choose, complete_groups, edges, groups, mean_score, without_seed
from fetal_core.bootstrap import MIN_CLUSTERS, Interval, PairedConfusions, Unit
from fetal_core.metrics import FloatArray, Predictions, class_rates
from fetal_core.search import Assignment, SearchConfig, Value
from fetal_core.study_config import Hypothesis, StudyConfig
from fetal_core.trials import Trial

Verdict = Literal["supported", "refuted", "undecided"]

LEVEL = 0.95
_TRAIN_STREAM = 1


@dataclass(frozen=True, eq=False)
class TrialPredictions:
    """What the weights of a trial's best epoch say, without augmentation, of its own images."""

    val: Predictions
    train: Predictions


@dataclass(frozen=True)
class Figure:
    """A number over seeds; the standard deviation is None with a single one."""

    mean: float
    deviation: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class ArmResult:
    """An arm at its best settings.

    Attributes:
        name: of the arm.
        settings: by dotted name, without the seed.
        edges: names of settings at an end of their values: a better one may lie beyond.
        trials: numbers of the trials, one a seed.
        seeds: theirs, None for the recipe's.
        figures: shares in [0, 1]: ``accuracy`` and ``macro_f1`` of the validation part,
            ``train_accuracy``, and ``gap``, which is training minus validation accuracy.
        parameters: trainable ones.
        work_s: mean time of a trial.
        best_epoch: mean.
        complete: candidates whose seeds have all finished, of which these settings are the best.
        candidates: all of the arm.
    """

    name: str
    settings: Assignment
    edges: tuple[str, ...]
    trials: tuple[int, ...]
    seeds: tuple[Value | None, ...]
    figures: Mapping[str, Figure]
    parameters: int
    work_s: float
    best_epoch: float
    complete: int
    candidates: int


@dataclass(frozen=True)
class HypothesisResult:
    """What the sweep says about a hypothesis.

    Attributes:
        hypothesis: the claim.
        verdict: ``supported`` or ``refuted`` where the whole interval is above or below 0.
        difference: of the means over seeds, arm minus other; None where an arm has no result.
        interval: of the difference over patients, None where they are too few.
        reason: why there is no interval; else empty.
    """

    hypothesis: Hypothesis
    verdict: Verdict
    difference: float | None = None
    interval: Interval | None = None
    reason: str = ""


@dataclass(frozen=True)
class StudyResult:
    """A comparison of arms.

    Attributes:
        metric: the validation number that settings were chosen by.
        arms: those with a complete candidate.
        hypotheses: in the order of the configuration.
        unit: what was drawn.
        patients: number of those units in the validation part.
        train_patients: in the training part.
        resamples: number of draws.
    """

    metric: str
    arms: tuple[ArmResult, ...]
    hypotheses: tuple[HypothesisResult, ...]
    unit: Unit
    patients: int
    train_patients: int
    resamples: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        hypotheses = [
            asdict(found) | {"hypothesis": found.hypothesis.model_dump(mode="json")}
            for found in self.hypotheses
        ]
        return asdict(self) | {"hypotheses": hypotheses, "level": LEVEL}


def compare(
    trials: Sequence[Trial],
    search: SearchConfig,
    study: StudyConfig,
    predictions: Mapping[int, TrialPredictions],
) -> StudyResult:
    """Judge the hypotheses; every draw of patients is scored in all seeds of both arms.

    Training and validation patients are drawn independently of each other.

    Args:
        trials: all of the sweep.
        search: its arms.
        study: the hypotheses, which passed ``check_study``.
        predictions: by number of the trial, at least for those of ``choose``.

    Raises:
        ValueError: predictions are missing, or trials disagree about classes, labels or patients.
    """
    chosen = choose(trials, search)
    cohort = _Cohort(chosen, predictions, study)
    arms = {
        arm: _arm_result(arm, best, trials, search, cohort.figures(arm))
        for arm, best in chosen.items()
    }
    return StudyResult(
        metric=search.metric,
        arms=tuple(arms.values()),
        hypotheses=tuple(_judge(hypothesis, arms, cohort) for hypothesis in study.hypotheses),
        unit=cohort.val.unit,
        patients=cohort.val.clusters,
        train_patients=cohort.train.clusters,
        resamples=study.resamples,
    )


def verdict(interval: Interval) -> Verdict:
    """What an interval of the difference says about the claim that it is greater than 0."""
    low, high = interval
    if low > 0:
        return "supported"
    return "refuted" if high < 0 else "undecided"


def _arm_result(
    name: str,
    best: Sequence[Trial],
    trials: Sequence[Trial],
    search: SearchConfig,
    figures: Mapping[str, Figure],
) -> ArmResult:
    settings = without_seed(best[0])
    return ArmResult(
        name=name,
        settings=settings,
        edges=edges(search, name, settings),
        trials=tuple(trial.number for trial in best),
        seeds=tuple(trial.assignment.get(SEED) for trial in best),
        figures=figures,
        parameters=best[0].parameters,
        work_s=fmean(trial.work_s for trial in best),
        best_epoch=mean_score(best, "epoch"),
        complete=len(complete_groups(trials, search, name)),
        candidates=len(groups(trials, name)),
    )


def _judge(
    hypothesis: Hypothesis, arms: Mapping[str, ArmResult], cohort: _Cohort
) -> HypothesisResult:
    names = (hypothesis.arm, hypothesis.other)
    lacking = [name for name in names if name not in arms]
    if lacking:
        reason = f"no settings of {' and '.join(lacking)} have finished with all their seeds"
        return HypothesisResult(hypothesis, "undecided", reason=reason)
    first, second = (arms[name].figures[hypothesis.measure].mean for name in names)
    parts = [cohort.val, cohort.train] if hypothesis.measure == "gap" else [cohort.val]
    fewest = min(part.clusters for part in parts)
    enough = fewest >= MIN_CLUSTERS
    interval = cohort.interval(hypothesis) if enough else None
    return HypothesisResult(
        hypothesis=hypothesis,
        verdict=verdict(interval) if interval else "undecided",
        difference=first - second,
        interval=interval,
        reason="" if enough else f"{fewest} {cohort.val.unit}s are too few for an interval",
    )


class _Cohort:
    """Measures, (1 + R, T), of the chosen trials: in row 0 over all patients, then by draw."""

    def __init__(
        self,
        chosen: Mapping[str, Sequence[Trial]],
        predictions: Mapping[int, TrialPredictions],
        study: StudyConfig,
    ) -> None:
        numbers = [trial.number for best in chosen.values() for trial in best]
        missing = [str(number) for number in numbers if number not in predictions]
        if missing:
            raise ValueError(f"no predictions of trials {', '.join(missing)}")
        self.val = PairedConfusions([predictions[number].val for number in numbers])
        self.train = PairedConfusions([predictions[number].train for number in numbers])
        self._columns = {
            arm: [numbers.index(trial.number) for trial in best] for arm, best in chosen.items()
        }
        resamples = study.resamples if numbers else 0
        val_generator = np.random.default_rng(study.seed)
        train_generator = np.random.default_rng([study.seed, _TRAIN_STREAM])
        self._measures = _measures(
            self.val.draws(resamples, val_generator),
            self.train.draws(resamples, train_generator),
        )

    def figures(self, name: str) -> dict[str, Figure]:
        """All measures of an arm."""
        found = {}
        for measure, values_RT in self._measures.items():
            by_seed = values_RT[0, self._columns[name]].tolist()
            deviation = stdev(by_seed) if len(by_seed) > 1 else None
            found[measure] = Figure(fmean(by_seed), deviation, tuple(by_seed))
        return found

    def interval(self, hypothesis: Hypothesis) -> Interval:
        """Percentile interval of the difference of the means over seeds."""
        first_R, second_R = (
            self._measures[hypothesis.measure][1:, self._columns[name]].mean(axis=1)
            for name in (hypothesis.arm, hypothesis.other)
        )
        tail = (1 - LEVEL) / 2
        # Both ends by the same rule, so that swapped arms give exactly the mirrored interval;
        # adding 0.0 turns -0.0 into 0.0.
        low = np.nanquantile(first_R - second_R, tail)
        high = -np.nanquantile(second_R - first_R, tail)
        return float(low) + 0.0, float(high) + 0.0


def _measures(val_RTKK: FloatArray, train_RTKK: FloatArray) -> dict[str, FloatArray]:
    """Every measure, (R, T), of confusion matrices; NaN without images."""
    accuracy_RT, train_accuracy_RT = _accuracy(val_RTKK), _accuracy(train_RTKK)
    f1_RTK = class_rates(val_RTKK)[2]
    classes_RT = np.isfinite(f1_RTK).sum(axis=-1)
    return {
        "accuracy": accuracy_RT,
        "macro_f1": np.nansum(f1_RTK, axis=-1) / np.where(classes_RT > 0, classes_RT, np.nan),
        "train_accuracy": train_accuracy_RT,
        "gap": train_accuracy_RT - accuracy_RT,
    }


def _accuracy(confusion_RTKK: FloatArray) -> FloatArray:
    images_RT = confusion_RTKK.sum(axis=(-2, -1))
    hits_RT = np.trace(confusion_RTKK, axis1=-2, axis2=-1)
    accuracy_RT: FloatArray = hits_RT / np.where(images_RT > 0, images_RT, np.nan)
    return accuracy_RT
