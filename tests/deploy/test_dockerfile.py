"""The image's recipe: linted, and its steps done as far as no container engine is needed."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from manifests import ALL_PODS, ROOT

DOCKERFILE = ROOT / "deploy/Dockerfile"
TEXT = DOCKERFILE.read_text("utf-8")
HADOLINT = Path(sys.executable).with_name("hadolint")
FINAL_STAGE = TEXT[TEXT.rindex("\nFROM ") :]


@pytest.mark.needs(HADOLINT.exists(), "hadolint is not installed: make check does it")
def test_hadolint_finds_nothing() -> None:
    result = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.needs(HADOLINT.exists(), "hadolint is not installed: make check does it")
def test_hadolint_would_find_a_fault(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text(re.sub(r"ARG PYTHON=.*", "", TEXT).replace("${PYTHON}", "latest"))
    result = subprocess.run([HADOLINT, broken], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "DL3007" in result.stdout


def test_the_base_is_pinned_and_is_the_python_that_the_pins_are_of() -> None:
    (version,) = re.findall(r"^ARG PYTHON=(\S+)", TEXT, re.MULTILINE)
    assert re.fullmatch(r"3\.11\.\d+-slim-\w+", version)
    assert "Python 3.11" in (ROOT / "constraints.txt").read_text("utf-8").partition("\nabsl")[0]


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    (user, group) = re.findall(r"^USER (\d+):(\d+)$", FINAL_STAGE, re.MULTILINE)[-1]
    (created,) = re.findall(r"useradd --uid (\d+)", FINAL_STAGE)
    assert user == created
    for pods in ALL_PODS:
        context = pods.spec["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))


def test_the_image_is_of_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert re.findall(r"^ARG VERSION=(\S+)", TEXT, re.MULTILINE) == [project["version"]]
    extras = set(re.findall(r"\[([\w,]+)\]", TEXT))
    assert extras == {"mlflow,export"}
    assert {"mlflow", "export"} <= set(project["optional-dependencies"])


def test_no_cache_and_no_package_list_stays_in_the_image() -> None:
    assert "--no-cache-dir" in FINAL_STAGE
    assert "apt-get" not in FINAL_STAGE
    assert "COPY" not in FINAL_STAGE  # wheels are mounted, sources stay in the first stage


def context(folder: Path) -> list[Path]:
    """Files that the build gets: those that .dockerignore leaves, by its last line that fits."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    def sent(path: Path) -> bool:
        names = [path.as_posix(), *(parent.as_posix() for parent in path.parents)][:-1]
        kept = True
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            anywhere = "**/" in rule
            if any(
                fnmatch.fnmatchcase(Path(name).name if anywhere else name, pattern)
                for name in names
            ):
                kept = rule.startswith("!")
        return kept

    tops = [top for top in folder.iterdir() if sent(Path(top.name))]
    files = [file for top in tops for file in (top, *top.rglob("*")) if file.is_file()]
    return sorted(name for file in files if sent(name := file.relative_to(folder)))


def copied(folder: Path) -> list[Path]:
    """Files that the COPY lines name, of those that the build gets."""
    sources = [
        Path(word)
        for line in re.findall(r"^COPY (.*)$", TEXT, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    return [
        name
        for name in context(folder)
        if any(name == source or source in name.parents for source in sources)
    ]


def test_the_build_gets_sources_and_no_data() -> None:
    files = context(ROOT)
    assert Path("ray_jobs/static/index.html") in files
    tops = {file.parts[0] for file in files}
    assert tops == {
        "constraints.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "fetal_core",
        "ray_jobs",
    }
    assert not any("__pycache__" in file.parts or file.suffix == ".pyc" for file in files)
    assert copied(ROOT) == files


def test_what_is_copied_is_enough_to_install_and_to_import(tmp_path: Path) -> None:
    tree, installed = tmp_path / "src", tmp_path / "installed"
    for name in copied(ROOT):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*build, "--wheel-dir", tmp_path, tree], check=True, timeout=120, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    # From the wheel alone: neither this checkout nor the working directory is on the path.
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import fetal_core, ray_jobs.cli as cli;"
        "from ray_jobs.job import named_configs, load_job;"
        "print(fetal_core.__file__, *named_configs()); load_job('scaled');"
        "sys.argv[1:] = ['--help']; sys.exit(cli.main())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, str(installed)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert str(installed) in result.stdout.splitlines()[0]
    assert "scaled" in result.stdout.splitlines()[0]
    assert "fetal COMMAND" in result.stdout
