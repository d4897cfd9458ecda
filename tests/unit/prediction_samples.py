"""Predictions of imaginary models, shared by the tests of evaluation."""

from __future__ import annotations

import numpy as np

from fetal_core.metrics import Predictions

CLASSES = ("Fetal brain", "Fetal femur", "Other")


def sample_predictions(
    rows: int = 400,
    patients: int = 60,
    classes: tuple[str, ...] = CLASSES,
    seed: int = 0,
    quality: float = 2.0,
) -> Predictions:
    """Random logits whose true class is raised by ``quality``; patients share an effect."""
    generator = np.random.default_rng(seed)
    width = len(classes)
    patient_N = generator.integers(0, patients, rows)
    labels_N = generator.integers(0, width, rows)
    effect_PK = generator.normal(size=(patients, width))
    logits_NK = generator.normal(size=(rows, width)) + effect_PK[patient_N]
    logits_NK[np.arange(rows), labels_N] += quality
    return Predictions(
        image_ids=tuple(f"image_{row}.png" for row in range(rows)),
        patients=tuple(f"P{patient}" for patient in patient_N),
        labels_N=labels_N,
        logits_NK=logits_NK.astype(np.float32),
        classes=classes,
    )
