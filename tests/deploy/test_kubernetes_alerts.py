"""The alert rules that the manifests install are those that promtool has seen firing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from manifests import KUBERNETES, ROOT, named

RULES = ROOT / "deploy/monitoring/alerts.yml"
INSTALLED = KUBERNETES / "base/platform/prometheusrules.yaml"


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_installed_rules_are_those_of_the_rules_file(overlay: str) -> None:
    wanted = yaml.safe_load(RULES.read_text("utf-8"))
    assert named(overlay, "PrometheusRule")["spec"] == wanted, "they differ: make rules"


@pytest.mark.needs(shutil.which("promtool"), "promtool is not installed")
def test_promtool_reads_the_installed_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(named("cpu", "PrometheusRule")["spec"]), "utf-8")
    command = ["promtool", "check", "rules", "--lint-fatal", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs(shutil.which("make"), "make is not installed")
def test_a_changed_rule_is_copied_by_make(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in (RULES, INSTALLED):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True)
        text = file.read_text("utf-8")
        copy.write_text(text.replace("> 0.9", "> 0.8") if file == RULES else text, "utf-8")
    subprocess.run(["make", "rules"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    made = (tmp_path / INSTALLED.relative_to(ROOT)).read_text("utf-8")
    assert made == INSTALLED.read_text("utf-8").replace("> 0.9", "> 0.8")
    assert "> 0.8" in made
