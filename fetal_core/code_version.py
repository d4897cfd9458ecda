"""Which code and which libraries a training run's numbers come from."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

# What the numbers of a run depend on. The rest of what training imports moves bytes: storage,
# S3, checkpoints, errors.
MODULES = (
    "augment",
    "batches",
    "config",
    "ema",
    "fine_tuning",
    "fit_config",
    "losses",
    "model",
    "optim",
    "pretrained",
    "probe",
    "rows",
    "statistics",
    "steps",
    "totals",
    "train",
    "training_data",
)


def code_version(folder: Path | None = None) -> dict[str, str]:
    """Digests of the modules that decide a training run's numbers, and versions beside them.

    Comments, docstrings and layout do not count.

    Args:
        folder: of the modules; None takes this package's.
    """
    folder = Path(__file__).parent if folder is None else folder
    found = {f"fetal_core/{name}.py": _digest(folder / f"{name}.py") for name in MODULES}
    python = ".".join(map(str, sys.version_info[:2]))
    return found | {"torch": str(torch.__version__), "python": python}


def code_differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """A line for each file or version that differs."""
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return [
        f"{name}: changed" if name.endswith(".py") else f"{name}: {old[name]} -> {new[name]}"
        for name in changed
    ]


def _digest(file: Path) -> str:
    tree = ast.parse(file.read_text("utf-8"))
    for node in _documented(tree):
        node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def _documented(
    tree: ast.Module,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What has a docstring."""
    for node in ast.walk(tree):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            yield node
