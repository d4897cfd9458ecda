"""An imaginary sweep of two arms and what its trials answer, shared by the tests of the study."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fetal_core.config import parse
from fetal_core.metrics import Predictions
from fetal_core.search import SearchConfig, Value
from fetal_core.study import TrialPredictions
from fetal_core.study_config import Hypothesis, StudyConfig
from fetal_core.trials import Status, Trial
from prediction_samples import CLASSES

SEEDS = (0, 1)
RATES = (0.01, 0.1)
SEARCH = parse(
    SearchConfig,
    {
        "algorithm": "grid",
        "scheduler": "none",
        "space": {"train.seed": {"grid": SEEDS}},
        "arms": {
            "deep": {"space": {"optim.lr": {"grid": RATES}}},
            "wide": {
                "settings": {"model.architecture": "vgg19"},
                "space": {"optim.lr": {"grid": RATES}},
            },
        },
    },
    "test",
)
STUDY = StudyConfig(hypotheses=(Hypothesis(claim="Deep wins.", arm="deep", other="wide"),))
PATIENTS, IMAGES_EACH = 40, 4


def study_of(measure: str, arm: str = "deep", other: str = "wide", **changes: int) -> StudyConfig:
    hypothesis = {"claim": "A claim.", "arm": arm, "other": other, "measure": measure}
    return parse(StudyConfig, {"hypotheses": [hypothesis], **changes}, "test")


def trial(
    number: int, arm: str, rate: float, seed: int, score: float, status: Status = "finished"
) -> Trial:
    assignment: dict[str, Value] = {"optim.lr": rate, "train.seed": seed}
    best = {"epoch": 3 + seed, "is_best": 1, "val_macro_f1": score, "val_accuracy": score}
    return Trial(number, assignment, arm, status, "", 5, 1000, 10.0 + seed, [best])


def sweep(arms: tuple[str, ...] = ("deep", "wide")) -> list[Trial]:
    """Numbers 0 to 3 are of the first arm; the higher rate (2, 3) scores better."""
    settings = [(arm, rate, seed) for arm in arms for rate in RATES for seed in SEEDS]
    return [
        trial(number, arm, rate, seed, 0.5 + rate)
        for number, (arm, rate, seed) in enumerate(settings)
    ]


def part(skill: float, seed: int, prefix: str = "P", patients: int = PATIENTS) -> Predictions:
    """Answers that are right with a chance of ``skill``, more often for some patients."""
    cohort = np.random.default_rng(99)
    patient_N = np.repeat(np.arange(patients), IMAGES_EACH)
    labels_N = cohort.integers(0, len(CLASSES), len(patient_N))
    ease_N = cohort.normal(0, 0.1, patients)[patient_N]
    generator = np.random.default_rng(seed)
    right_N = generator.random(len(patient_N)) < skill + ease_N
    answers_N = np.where(right_N, labels_N, (labels_N + 1) % len(CLASSES))
    return Predictions(
        image_ids=tuple(f"{prefix}{row:03d}.png" for row in range(len(patient_N))),
        patients=tuple(f"{prefix}{patient}" for patient in patient_N),
        labels_N=labels_N,
        logits_NK=np.eye(len(CLASSES), dtype=np.float32)[answers_N],
        classes=CLASSES,
    )


def answers(
    val: Mapping[str, float], train: Mapping[str, float] | None = None, patients: int = PATIENTS
) -> dict[int, TrialPredictions]:
    """Predictions of the chosen trials of ``sweep``, by each arm's skill."""
    first = {"deep": 2, "wide": 6}
    return {
        first[arm] + seed: TrialPredictions(
            part(skill, seed=100 * first[arm] + seed, patients=patients),
            part((train or val)[arm], 50 + 100 * first[arm] + seed, "T", patients + 5),
        )
        for arm, skill in val.items()
        for seed in SEEDS
    }


def rows_of(predictions: Predictions, rows: list[int]) -> Predictions:
    return Predictions(
        image_ids=tuple(predictions.image_ids[row] for row in rows),
        patients=tuple(predictions.patients[row] for row in rows),
        labels_N=predictions.labels_N[rows],
        logits_NK=predictions.logits_NK[rows],
        classes=predictions.classes,
    )
