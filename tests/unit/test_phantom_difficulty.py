"""The planes must need more than a glance, and the burned-in marks must not give them away."""

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fetal_core.phantom import PLANES, PhantomConfig, Row, make_cohort, render
from fetal_core.phantom.overlay import draw_overlay
from fetal_core.phantom.seeds import stream


def thumbnail(image: np.ndarray, side: int = 32) -> np.ndarray:
    picture = Image.fromarray(image).convert("L")
    picture.thumbnail((side, side), Image.Resampling.BOX)
    canvas = Image.new("L", (side, side))
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(canvas, dtype=np.float64).ravel()


def held_out_accuracy(features_NF, planes_N, train_N, strength) -> float:
    model = LogisticRegression(C=strength, max_iter=300)
    classifier = make_pipeline(StandardScaler(), model)
    classifier.fit(features_NF[train_N], planes_N[train_N])
    return float(classifier.score(features_NF[~train_N], planes_N[~train_N]))


def test_thumbnails_do_not_separate_the_planes():
    rows = make_cohort(PhantomConfig(images=240, patients=60, seed=11))
    rows.sort(key=lambda row: row.machine)
    features_NF = np.stack([thumbnail(render(row, 11)) for row in rows])
    planes_N = np.array([row.plane for row in rows])
    train_N = np.array([row.train for row in rows])
    accuracy = held_out_accuracy(features_NF, planes_N, train_N, 1e-3)
    assert 0.35 < accuracy < 0.85


def overlay_accuracy(shortcut: float) -> float:
    """Accuracy of a linear model that sees only the burned-in marks of 600 blank screens."""
    rows = [
        Row(f"image{i}", i, PLANES[i % 6], "Not A Brain", "Other", "Aloka", True)
        for i in range(600)
    ]
    features = []
    for row in rows:
        screen = np.zeros((392, 640), dtype=np.uint8)
        draw_overlay(screen, row, 0.3, stream(1, row.image_name), shortcut)
        strip = np.concatenate([screen[:60, 440:].ravel(), screen[330:, :120].ravel()])
        features.append(strip.astype(np.float64))
    train_N = np.arange(600) < 400
    planes_N = np.array([row.plane for row in rows])
    return held_out_accuracy(np.stack(features), planes_N, train_N, 1e-4)


@pytest.mark.parametrize(("shortcut", "low", "high"), [(0.0, 0.0, 0.30), (1.0, 0.95, 1.0)])
def test_marks_depend_on_the_plane_only_when_asked_for(shortcut, low, high):
    assert low <= overlay_accuracy(shortcut) <= high
