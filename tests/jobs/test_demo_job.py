"""``fetal demo`` as a newcomer runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_demo_names_the_planes_of_patients_it_has_not_seen(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray_jobs.demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / "demo/run/report.html"
    assert f"open {report} in a browser" in done.stdout.replace("\n", "")
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert re.search(
        r"POST http://127\.0\.0\.1:\d+/v1/predict of \S+: .* (accept|review)", done.stdout
    )
    metrics = json.loads((tmp_path / "demo/run/metrics.json").read_text())
    assert metrics["accuracy"] >= 0.9
    assert metrics["patients"] > 30
