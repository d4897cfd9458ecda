"""Limits that every source file keeps."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
GLOBAL_SEEDERS = {
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "torch.manual_seed",
    "torch.default_generator.manual_seed",
}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def nodes(package: str) -> Iterator[tuple[str, ast.AST]]:
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            yield where, node


@pytest.mark.parametrize("package", ["fetal_core", "ray_jobs"])
def test_files_are_short(package: str) -> None:
    lengths = {str(path): len(path.read_text("utf-8").splitlines()) for path in sources(package)}
    assert {path: n for path, n in lengths.items() if n > MAX_FILE_LINES} == {}


@pytest.mark.parametrize("package", ["fetal_core", "ray_jobs"])
def test_functions_are_short(package: str) -> None:
    lengths = {
        f"{where} {node.name}": node.end_lineno - node.lineno + 1
        for where, node in nodes(package)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


def test_the_core_does_not_print() -> None:
    found = [
        where
        for where, node in nodes("fetal_core")
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert found == []


@pytest.mark.parametrize("package", ["fetal_core", "ray_jobs"])
def test_global_generators_are_seeded_only_in_a_fork_of_their_state(package: str) -> None:
    found = []
    for path in sources(package):
        tree = ast.parse(path.read_text("utf-8"))
        forked = {id(inner) for node in ast.walk(tree) if is_fork(node) for inner in ast.walk(node)}
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in GLOBAL_SEEDERS
            and id(node) not in forked
        ]
    assert found == []


def is_fork(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and "fork_rng" in ast.unparse(node.items[0].context_expr)
