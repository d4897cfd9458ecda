"""Which changes of the code a resumed run notices."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

import fetal_core
from fetal_core.code_version import MODULES, code_differences, code_version

FOLDER = Path(fetal_core.__file__).parent
MOVES_BYTES = {"checkpoint", "errors", "objects", "run_context", "s3", "storage"}


def imported(module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fetal_core":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fetal_core."):
            found.add(str(node.module).split(".")[1])
    return found


def test_every_module_behind_training_counts_or_moves_bytes_only() -> None:
    found, left = set(), {"train"}
    while left:
        module = left.pop()
        found.add(module)
        left |= imported(module) - found
    assert found == {*MODULES, *MOVES_BYTES}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "core"))


def test_unchanged_code_has_one_version(copy: Path) -> None:
    assert code_differences(code_version(), code_version(copy)) == []


def test_a_changed_statement_is_noticed_and_named(copy: Path) -> None:
    file = copy / "losses.py"
    file.write_text(file.read_text() + "\nEXTRA = 1\n")
    assert code_differences(code_version(), code_version(copy)) == ["fetal_core/losses.py: changed"]


def test_comments_docstrings_and_layout_do_not_count(copy: Path) -> None:
    file = copy / "totals.py"
    text = file.read_text()
    assert '"""Nothing counted yet."""' in text
    text = text.replace('"""Nothing counted yet."""', '"""Zero."""')
    file.write_text(text.replace("\n\n\n", "\n\n\n# A remark.\n\n\n"))
    assert code_differences(code_version(), code_version(copy)) == []
