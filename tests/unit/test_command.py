"""Command lines: where settings come from, and what a user sees when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from builders import fit_config, toy_data
from fetal_core.errors import ConfigError, DataError, Problem
from fetal_core.phantom import PhantomConfig
from fetal_core.run_context import LocalContext
from fetal_core.train import fit
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.command import entry, parse_args
from ray_jobs.console import show_problems, training_view
from ray_jobs.job import Job, load_job
from ray_jobs.signals import INTERRUPTED, TERMINATED


@dataclass
class Args:
    """A command with a folder and a job, as all stages have."""

    folder: tyro.conf.Positional[str]
    job: Annotated[Job, tyro.conf.arg(name="")]
    name: str = "run"
    config: str | None = None


@dataclass
class PlainArgs:
    """A command without a job."""

    folder: tyro.conf.Positional[str]
    limit: int = 3


@dataclass
class ModelsArgs:
    """A command without a job, with models whose flags have a prefix or none."""

    folder: tyro.conf.Positional[str]
    cohort: Annotated[PhantomConfig, tyro.conf.arg(name="")]
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def parsed(*argv: str) -> Args:
    return parse_args(Args, argv, "fetal test")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    saved = Job.model_validate({"train": {"epochs": 7, "seed": 9}, "optim": {"lr": 0.25}})
    (tmp_path / "recipe.json").write_text(json.dumps(saved.recipe().model_dump(mode="json")))
    return tmp_path


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    args = parsed(str(tmp_path))
    assert args.job == Job()
    assert (args.folder, args.name, args.config) == (str(tmp_path), "run", None)


def test_saved_settings_of_a_prepared_folder_are_the_default(prepared: Path) -> None:
    job = parsed(str(prepared), "--name", "x").job
    assert (job.train.epochs, job.train.seed, job.optim.lr) == (7, 9, 0.25)


def test_saved_settings_are_found_wherever_the_folder_stands(prepared: Path) -> None:
    args = parsed("--name", "x", "--train.seed", "1", str(prepared))
    assert (args.folder, args.name) == (str(prepared), "x")
    assert (args.job.train.epochs, args.job.train.seed) == (7, 1)


def test_a_prepared_folder_in_another_flag_gives_no_settings(prepared: Path) -> None:
    assert parsed("elsewhere", "--name", str(prepared)).job == Job()


def test_flags_override_saved_settings(prepared: Path) -> None:
    job = parsed(str(prepared), "--train.epochs", "2", "--cluster.workers", "4").job
    assert (job.train.epochs, job.train.seed, job.cluster.workers) == (2, 9, 4)


@pytest.mark.parametrize("flag", [["--config", "scaled"], ["--config=scaled"]])
def test_a_named_configuration_replaces_saved_settings_and_flags_override_it(
    prepared: Path, flag: list[str]
) -> None:
    scaled = load_job("scaled")
    job = parsed(str(prepared), *flag, "--train.epochs", "3", "--optim.lr", "0.5").job
    assert (job.train.epochs, job.optim.lr) == (3, 0.5)
    assert job.train.batch_size == scaled.train.batch_size
    assert job.train.seed == scaled.train.seed
    assert job.augment == scaled.augment


def test_a_file_may_be_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nepochs = 5\n")
    assert parsed(str(tmp_path), "--config", str(file)).job.train.epochs == 5


def test_unknown_configuration_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'scaled'"):
        parsed("folder", "--config", "scald")


def test_flags_that_do_not_go_together_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="'lbfgs' solves a whole problem"):
        parsed("folder", "--optim.name", "lbfgs")
    assert parsed("folder", "--optim.name", "lbfgs", "--train.mode", "probe").job.optim.name == (
        "lbfgs"
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--trian.epochs", "3"], "--train.epochs"),
        (["--train.epochs", "many"], "--train.epochs"),
    ],
)
def test_wrong_flags_end_with_code_2_and_their_name(
    capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("folder", *flags)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).replace("│", " ").split())
    assert named in text
    assert "Traceback" not in text


def test_all_values_that_break_a_rule_are_told_by_the_names_of_their_flags() -> None:
    flags = ["--train.epochs", "0", "--optim.lr", "-1", "--cluster.workers", "0"]
    with pytest.raises(ConfigError) as caught:
        parsed("folder", *flags, "--split.test", "0.9")
    message = str(caught.value)
    assert message.startswith("fetal test: these settings are not valid:\n")
    assert "train.epochs: Input should be greater than or equal to 1 (got 0)" in message
    assert "optim.lr: Input should be greater than 0 (got -1.0)" in message
    assert "cluster.workers: Input should be greater than or equal to 1 (got 0)" in message
    assert "split: " in message
    assert "leave images to train on" in message
    assert message.count("\n") == 4


@pytest.mark.parametrize(
    ("flag", "named"), [("--cluster.workers", "cluster.workers: "), ("--images", "images: ")]
)
def test_values_of_commands_without_a_job_are_told_alike(flag: str, named: str) -> None:
    with pytest.raises(ConfigError, match=f"- {named}Input should be greater than or equal to 1"):
        parse_args(ModelsArgs, ["here", flag, "0"], "fetal test")


def test_help_explains_each_table_and_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for words in ("A command with a folder", "The optimizer.", "--optim.lr", "learning rate"):
        assert words in shown


def test_commands_without_a_job_parse_alike() -> None:
    args = parse_args(PlainArgs, ["here", "--limit", "5"], "fetal test")
    assert (args.folder, args.limit) == ("here", 5)


def run(argv: Sequence[str]) -> int | None:
    parse_args(Args, argv, "fetal test")
    return None


def test_a_command_that_succeeds_ends_with_0(tmp_path: Path) -> None:
    assert entry(run, [str(tmp_path)]) == 0


def test_an_error_is_one_line_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(run, ["folder", "--config", "scald"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: --config scald: no configuration of this name")
    assert shown.err.count("\n") == 1


def test_square_brackets_of_a_message_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem("changed-image", "a[bold].png", "it changed", "Audit again.")

    def fail(argv: Sequence[str]) -> int:
        raise DataError("1 image [of 3]:", [problem])

    assert entry(fail, []) == 2
    assert capsys.readouterr().err == (
        "error: 1 image [of 3]:\n  - a[bold].png: it changed [changed-image]. Audit again.\n"
    )


def test_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert entry(interrupted, []) == INTERRUPTED
    assert "interrupted; run the same command again" in capsys.readouterr().err


def test_sigterm_says_how_to_go_on() -> None:
    script = (
        "import os, signal, sys\n"
        "from ray_jobs.command import entry\n"
        "from ray_jobs.signals import end_on_sigterm\n"
        "def command(argv):\n"
        "    end_on_sigterm()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(entry(command, []))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == TERMINATED
    assert done.stderr == "stopped; run the same command again to continue\n"


def test_programming_errors_are_not_hidden() -> None:
    def broken(argv: Sequence[str]) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        entry(broken, [])


def test_problems_are_listed_errors_first_and_cut(capsys: pytest.CaptureFixture[str]) -> None:
    warnings = [Problem("w", f"w{n}", "odd", "Look.", None, "warning") for n in range(12)]
    show_problems([*warnings, Problem("e", "bad.png", "broken", "Mend.")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "error: bad.png: broken [e]. Mend."
    assert len(lines) == 11
    assert lines[-1] == "... and 3 more; `fetal audit` lists all"


def test_training_view_prints_a_line_for_each_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fit_config(
        train={"mode": "probe_then_finetune", "probe_epochs": 2, "epochs": 2, "batch_size": 4}
    )
    with training_view() as view:
        view({"kind": "starting"})
        progress = fit(config, toy_data(8, 4), LocalContext(tmp_path, on_event=view))
    with training_view() as view:
        fit(config, toy_data(8, 4), LocalContext(tmp_path, on_event=view))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("features computed once in ")
    assert lines[1].startswith("linear head, epoch ")
    for number, record in enumerate(progress.history, 1):
        assert lines[1 + number].startswith(f"epoch   {number}/2  train loss ")
        assert f"val loss {record['val_loss']:.3f}" in lines[1 + number]
    assert lines[4] == "resuming after epoch 2 of 2"
    assert len(lines) == 5
