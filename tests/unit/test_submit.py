"""What `fetal submit` checks and prints before anything is sent."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ray_jobs import submit, train
from ray_jobs.cli import COMMANDS
from ray_jobs.command import entry
from ray_jobs.job_package import uploaded
from ray_jobs.places import STAGES, Place, PlaceError, check_shared
from ray_jobs.submission import _last_line

ROOT = Path(__file__).resolve().parents[2]
HERE_ONLY = {"demo", "serve", "key", "link", "phantom", "submit", "jobs"}
NO_STORE = "http://127.0.0.1:9"
TRAIN = ("train", "/mnt/prepared", "--runs", "/mnt/runs")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name in ("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", NO_STORE)


def dry(capsys: Capture, *words: str) -> tuple[int, str, str]:
    """Exit code, output and messages of a submission that is only checked."""
    try:
        code = entry(submit.main, ["--dry-run", *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def arguments(command: str, **variables: str) -> list[str]:
    """What a shell makes of a command's words."""
    show = f"{shlex.quote(sys.executable)} -c 'import sys, json; print(json.dumps(sys.argv[1:]))' "
    done = subprocess.run(
        show + command, shell=True, env=variables, capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


def test_every_command_either_runs_as_a_job_or_has_no_business_there() -> None:
    assert {name for name in STAGES if " " not in name} | HERE_ONLY == set(COMMANDS)


def test_the_document_lists_the_stages_that_run_as_jobs() -> None:
    text = (ROOT / "docs/jobs.md").read_text(encoding="utf-8")
    listed = text.partition("These stages run as jobs:")[2].partition(". ")[0]
    assert set(re.findall("`([a-z ]+)`", listed)) == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_every_text_among_a_stages_arguments_is_known_to_be_a_path_or_not(name: str) -> None:
    stage = STAGES[name]
    kind = getattr(import_module(f"ray_jobs.{stage.module}"), stage.kind)
    hints = get_type_hints(kind)
    texts = {field.name for field in fields(kind) if _is_text(hints[field.name])}
    no_paths = {"name", "config", "resume", "model", "alias", "address"}
    assert texts - no_paths == {*stage.reads, *stage.writes}


def _is_text(hint: Any) -> bool:
    return hint in (str, str | None, tuple[str, ...])


def test_the_printed_command_is_the_one_for_a_shell(capsys: Capture) -> None:
    words = (*TRAIN, "--name", "it's $HOME", "--config", "scaled")
    code, command, _ = dry(capsys, "--address", "http://head:8265", "--no-wait", *words)
    assert code == 0
    found = arguments(command)
    split = found.index("--")
    assert found[split + 1 :] == ["python", "-m", "ray_jobs.train", *words[1:]]
    own = found[:split]
    assert own[:5] == ["ray", "job", "submit", "--address", "http://head:8265"]
    assert own[5:8] == ["--no-wait", "--working-dir", "."]


def test_variables_are_forwarded_and_their_values_not_shown(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3 cr'et")
    code, command, _ = dry(capsys, "--env", "AWS_SECRET_ACCESS_KEY", *TRAIN)
    assert code == 0
    assert "cr'et" not in command
    found = arguments(command, AWS_SECRET_ACCESS_KEY="s3 cr'et")
    variables = json.loads(found[found.index("--runtime-env-json") + 1])["env_vars"]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    expected = {
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": NO_STORE,
        "AWS_SECRET_ACCESS_KEY": "s3 cr'et",
    }
    assert variables == expected | ({"FETAL_GIT_COMMIT": commit} if commit else {})


def test_a_variable_that_is_not_set_is_told(capsys: Capture) -> None:
    code, _, told = dry(capsys, "--env", "NO_SUCH_VARIABLE", *TRAIN)
    assert code == 2
    assert "--env NO_SUCH_VARIABLE: not set here" in told


def test_a_runtime_environment_is_read_and_keeps_its_variables(
    capsys: Capture, tmp_path: Path
) -> None:
    file = tmp_path / "environment.yaml"
    file.write_text("pip: [mlflow-skinny==3.14.0]\nenv_vars: {OMP_NUM_THREADS: '2'}\n")
    _, command, _ = dry(capsys, "--runtime-env", str(file), *TRAIN)
    found = arguments(command)
    environment = json.loads(found[found.index("--runtime-env-json") + 1])
    assert environment["pip"] == ["mlflow-skinny==3.14.0"]
    assert environment["env_vars"]["OMP_NUM_THREADS"] == "2"
    file.write_text("[not, a, mapping]")
    assert dry(capsys, "--runtime-env", str(file), *TRAIN)[0] == 2
    file.write_text("env_vars: {OMP_NUM_THREADS: 2}\n")
    code, _, said = dry(capsys, "--runtime-env", str(file), *TRAIN)
    assert (code, "not text: OMP_NUM_THREADS" in said) == (2, True), said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "STAGE"),
        (("tarin",), "did you mean 'train'"),
        (("serve", "bundle"), "serve deploy"),
        ((*TRAIN, "--trian.epochs", "3"), "--train.epochs"),
        ((*TRAIN, "--train.epochs", "many"), "--train.epochs"),
        ((*TRAIN, "--train.epochs", "0"), "greater than or equal to 1"),
        ((*TRAIN, "--config", "scald"), "did you mean 'scaled'"),
        (("train", "--runs", "/mnt/runs"), "Missing from fetal train"),
        (("tune", "--runs", "/mnt/runs"), "or --resume NAME"),
        (("train", "prepared"), "PREPARED prepared"),
        (("train", "s3://bucket/prepared"), "--runs runs: would be written to"),
        ((*TRAIN, "--model.weights", "mine.pth"), "--model.weights mine.pth"),
        (("--working-dir", "docs", *TRAIN), "--working-dir docs: has no folder ray_jobs"),
        (("--no-weit", *TRAIN), "did you mean '--no-wait'"),
    ],
)
def test_what_is_wrong_is_told_at_once(
    capsys: Capture, words: tuple[str, ...], message: str
) -> None:
    code, out, told = dry(capsys, *words)
    assert code == 2
    text = " ".join((out + told).replace("│", " ").split())
    assert message in text
    assert "ray job submit" not in text


def test_settings_that_only_the_cluster_can_read_are_left_to_the_job(capsys: Capture) -> None:
    where = ("train", "s3://bucket/prepared", "--runs", "s3://bucket/runs")
    code, command, told = dry(capsys, *where, "--train.epochs", "3")
    assert code == 0, told
    assert "are checked against saved ones by the job" in told
    assert "--train.epochs 3" in command
    assert dry(capsys, *where, "--trian.epochs", "3")[0] == 2


def test_a_configuration_is_found_only_where_it_is_uploaded(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "checkout"
    (copy / "ray_jobs").mkdir(parents=True)
    (copy / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    for folder in (copy, copy / "settings"):
        folder.mkdir(exist_ok=True)
        (folder / "mine.toml").write_text("[train]\nepochs = 5\n")
    monkeypatch.chdir(copy)
    assert dry(capsys, *TRAIN, "--config", "mine.toml")[0] == 0
    for elsewhere in ("settings/mine.toml", str(copy / "mine.toml")):
        code, _, told = dry(capsys, *TRAIN, "--config", elsewhere)
        assert code == 2
        assert f"--config {elsewhere}: is not uploaded with the job" in told


def test_paths_of_this_machine_need_to_be_shared_with_others() -> None:
    found = [Place("DATA", "/mnt/data", False), Place("--out", "s3://bucket/out", True)]
    check_shared(found, [], [])
    check_shared(found, ["/mnt"], ["worker-1"])
    with pytest.raises(PlaceError, match=r"worker-1.*\n  - DATA /mnt/data\n.*--shared FOLDER"):
        check_shared(found, ["/mn"], ["worker-1"])


def test_a_job_itself_refuses_paths_that_would_be_lost(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without `fetal submit` too."""
    folder = tmp_path / "_ray_pkg_0123456789abcdef"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert entry(train.main, ["/mnt/prepared"]) == 2
    assert "--runs runs: would be written to the job's own folder" in capsys.readouterr().err


def test_a_job_takes_the_code_along_and_little_else() -> None:
    files = uploaded(ROOT)
    assert sum((ROOT / file).stat().st_size for file in files) < 2 * 1024 * 1024
    for package in ("fetal_core", "ray_jobs"):
        wanted = {
            file.relative_to(ROOT)
            for file in (ROOT / package).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert wanted <= set(files)
    assert {file.parts[0] for file in files} <= {
        *("fetal_core", "ray_jobs", "pyproject.toml", "constraints.txt", "LICENSE")
    }


def test_the_last_line_of_a_servers_traceback_is_told() -> None:
    text = "Request failed: Traceback (most recent call last):\n  File x\nValueError: in use\n."
    assert _last_line(RuntimeError(text)) == "ValueError: in use."
