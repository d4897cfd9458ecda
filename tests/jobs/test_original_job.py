"""The original recipe at its full image size, from the cohort to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fetal_core.bundle import read_info
from fetal_core.phantom import PhantomConfig, write_cohort
from ray_jobs import run
from ray_jobs.command import entry

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_original_recipe_runs_at_661_px(cluster: None, tmp_path: Path) -> None:
    write_cohort(PhantomConfig(images=28, patients=14, seed=5), tmp_path / "cohort")
    # Two images in a pass instead of eight: the recipe's full batch needs 8 GB of memory.
    words = ["--config", "original", "--model.weights", "none", "--train.epochs", "1"]
    words += ["--train.micro-batch", "2"]
    code = entry(run.main, [str(tmp_path / "cohort"), "--out", str(tmp_path / "out"), *words])
    assert code == 0
    info = read_info(str(tmp_path / "out/run/bundle"))
    assert info.architecture == "resnet50"
    assert (info.preprocess.size_px, info.preprocess.fit) == (661, "squash")
    assert info.classes == ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")
    (record,) = (tmp_path / "out/run/metrics.jsonl").read_text().splitlines()
    assert json.loads(record)["lr"] == 0.01
    assert (tmp_path / "out/run/report.html").exists()
