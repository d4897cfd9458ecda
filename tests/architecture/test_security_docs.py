"""Every test that the threat table names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text("utf-8"))
CODE = re.findall(
    r"`((?:fetal_core|ray_jobs)/[\w/]+\.py)`", (ROOT / "docs/security.md").read_text("utf-8")
)


def test_the_tests_and_modules_that_the_threat_table_names_are_there() -> None:
    missing = [
        f"{path}::{name}"
        for path, name in NAMED
        if not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)
    ]
    assert missing == []
    assert [path for path in CODE if not (ROOT / path).is_file()] == []
    assert len(NAMED) > 30
