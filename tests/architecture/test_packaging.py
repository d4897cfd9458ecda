"""What the distribution declares, pins and carries."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ray_jobs.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGES = ("fetal_core", "ray_jobs")


def declared(*extras: str) -> list[Requirement]:
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


def pins() -> dict[str, Requirement]:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, lines)}


def test_constraints_pin_exact_versions_from_the_index() -> None:
    for pin in pins().values():
        assert pin.url is None
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version
        assert "*" not in specifier.version


@pytest.mark.parametrize(
    "requirement", declared("test", "dev", "mlflow", "export"), ids=lambda found: found.name
)
def test_every_dependency_is_pinned_within_its_declared_range(requirement: Requirement) -> None:
    (specifier,) = pins()[canonicalize_name(requirement.name)].specifier
    assert requirement.specifier.contains(specifier.version)


def test_whatever_a_dependency_needs_is_pinned_too() -> None:
    assert closure(declared("test", "mlflow", "export")) - set(pins()) == set()


def closure(wanted: list[Requirement]) -> set[str]:
    extras: dict[str, set[str]] = {}
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in extras and requirement.extras <= extras[name]:
            continue
        asked = extras.setdefault(name, {""})
        asked |= requirement.extras
        wanted += [
            needed
            for needed in map(Requirement, requires(name) or [])
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in asked)
        ]
    return set(extras)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_third_party_import_is_declared(package: str) -> None:
    names = {canonicalize_name(requirement.name) for requirement in declared("mlflow", "export")}
    owners = packages_distributions()
    undeclared = {
        module
        for module in third_party_imports(package)
        if not names & {canonicalize_name(owner) for owner in owners.get(module, [])}
    }
    assert undeclared == set()


def third_party_imports(package: str) -> set[str]:
    found: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_module(command: str) -> None:
    assert find_spec(f"ray_jobs.{command}") is not None


def test_every_folder_of_tests_is_collected() -> None:
    folders = {found.parent for found in (ROOT / "tests").rglob("test_*.py")}
    collected = {ROOT / path for path in PYPROJECT["tool"]["pytest"]["ini_options"]["testpaths"]}
    assert folders <= collected


@pytest.mark.heavy
def test_wheel_carries_every_file_of_the_packages(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tree / package, ignore=ignore)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(tree)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert carried == expected
