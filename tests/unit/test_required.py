"""What a machine lacks is a skipped test, or a failure where all must run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
# Its own test alone is collected: the conftest is the one that all tests share.
LACKING = """
import pytest
from required import lack

@pytest.mark.needs(False, "no browser")
def test_by_a_mark(): ...

@pytest.mark.needs(True, "no server")
def test_that_lacks_nothing(): ...

@pytest.fixture
def cluster(): lack("no root")

def test_by_a_fixture(cluster): ...
"""


@pytest.mark.parametrize(
    ("variables", "code", "ends"),
    [({}, 0, {"passed": 1, "skipped": 2}), ({"FETAL_NO_SKIPS": "1"}, 1, {"passed": 1, "error": 2})],
    ids=["anywhere", "in CI"],
)
def test_what_is_lacking_is_told(
    tmp_path: Path, variables: dict[str, str], code: int, ends: dict[str, int]
) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_lacking.py").write_text(LACKING)
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {TESTS / 'unit'}\nmarkers = needs\naddopts = -ra --strict-markers"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FETAL_")}
    kept.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=kept | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    said = done.stdout.splitlines()[-1]
    assert all(f"{number} {end}" in said for end, number in ends.items()), done.stdout
    assert "no browser" in done.stdout
    assert "no root" in done.stdout
    assert "no server" not in done.stdout
