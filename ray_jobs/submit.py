"""``fetal submit``: a stage as a job of a Ray cluster, checked before anything is sent."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from ray.job_submission import JobSubmissionClient

from fetal_core import storage
from fetal_core.bundle import git_commit
from fetal_core.config import nearest
from fetal_core.errors import ConfigError, StorageError
from ray_jobs import submission
from ray_jobs.command import flag_value, parse_args, stage
from ray_jobs.console import errors, say
from ray_jobs.job_package import uploaded
from ray_jobs.places import check_lasting, check_shared, places
from ray_jobs.signals import INTERRUPTED
from ray_jobs.submittable import find_stage, read_stage

# What an address such as s3://bucket means depends on these. They are not secret.
_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
_SWITCHES = ("--no-wait", "--dry-run")


@dataclass
class SubmitArgs:
    """Run a stage as a job: fetal submit [options] STAGE [arguments of the stage].

    The stage's arguments are checked here first, as `fetal STAGE` would. The command that it
    stands for is printed; then the job's output is shown, and its exit code is that of this
    command. Ctrl-C leaves the job running.
    """

    stage: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STAGE")]
    """audit, prepare, train, tune, evaluate, crossval, run, predict, export, register, promote,
    rollback or doctor; all words after it are the stage's own."""
    address: str | None = None
    """Of the cluster's job server, such as http://HEAD:8265; by default RAY_API_SERVER_ADDRESS or
    RAY_ADDRESS, else a cluster of this machine."""
    no_wait: tyro.conf.FlagCreatePairsOff[bool] = False
    """End when the job has been submitted."""
    submission_id: str | None = None
    """Name of the job, not used on this cluster before; made up by default."""
    working_dir: str = "."
    """Checkout to upload, without what .gitignore and .rayignore leave out; or s3://....zip."""
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Name of an environment variable that the job gets from here; may be repeated. AWS_REGION,
    AWS_DEFAULT_REGION and AWS_ENDPOINT_URL are always given."""
    shared: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Absolute folder that is the same on all machines of the cluster; may be repeated."""
    runtime_env: str | None = None
    """YAML file with a runtime environment of Ray, for instance packages to install."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Check, print the command, and do nothing."""


@dataclass(frozen=True)
class Submission:
    """What is sent.

    Attributes:
        entrypoint: words of the command that the job runs.
        runtime_env: of Ray, without the variables.
        variables: the job's environment variables.
        secret: those whose values are not to be shown.
    """

    entrypoint: tuple[str, ...]
    runtime_env: Mapping[str, Any]
    variables: Mapping[str, str]
    secret: tuple[str, ...]

    def command(self, args: SubmitArgs) -> str:
        """The `ray job submit` that does the same; the shell fills in what is not to be shown."""
        settings = ["RAY_AUTH_MODE=token"] if submission.use_token() else []
        words = ["ray", "job", "submit"]
        if args.address is not None:
            words += ["--address", args.address]
            if any(key in os.environ for key in submission.ADDRESSES):
                settings.append(f"RAY_API_SERVER_ADDRESS={args.address}")
        if args.submission_id is not None:
            words += ["--submission-id", args.submission_id]
        if args.no_wait:
            words += ["--no-wait"]
        words += ["--working-dir", args.working_dir]
        shown = shlex.join([*settings, *words])
        if environment := self.environment(hidden=True):
            shown += f" --runtime-env-json {self._filled_in_by_the_shell(environment)}"
        return f"{shown} -- {shlex.join(self.entrypoint)}"

    def environment(self, hidden: bool = False) -> dict[str, Any]:
        """The whole runtime environment; with marks for what is not to be shown."""
        found = dict(self.runtime_env)
        shown = {
            name: _mark(name) if hidden and name in self.secret else value
            for name, value in self.variables.items()
        }
        if shown:
            found["env_vars"] = shown
        return found

    def _filled_in_by_the_shell(self, environment: Mapping[str, Any]) -> str:
        word = shlex.quote(json.dumps(environment))
        for name in self.secret:
            word = word.replace(_mark(name), f"'\"${name}\"'")
        return word


def _mark(name: str) -> str:
    return f"<<{name}>>"


def main(argv: Sequence[str]) -> int:
    """The command line of a submission."""
    own, words = _split(argv)
    args = parse_args(SubmitArgs, own, "fetal submit")
    folder = _folder(args.working_dir)
    with chdir(folder or "."):
        found_stage, name, rest = find_stage([args.stage, *words])
        stage_args, unchecked = read_stage(found_stage, name, rest)
    found = list(places(stage_args))
    check_lasting(found)
    if folder is not None:
        _check_uploaded(folder, flag_value(rest, "config"))
    sent = _submission(args, [args.stage, *words], folder)
    if unchecked is not None:
        errors.print(unchecked, markup=False)
    with submission.told(args.address):
        say(sent.command(args))
    if args.dry_run:
        return 0
    client = submission.connect(args.address)
    check_shared(found, args.shared, submission.other_machines(client))
    return _run(client, sent, args)


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The words up to the stage's name, and the stage's own words.

    Raises:
        ConfigError: an unknown option before the stage's name.
    """
    flags = [f"--{field.name.replace('_', '-')}" for field in fields(SubmitArgs)]
    position = 0
    while position < len(argv) and argv[position].startswith("-"):
        flag, _, value = argv[position].partition("=")
        if flag in ("-h", "--help"):
            return [flag], ()
        if flag not in flags:
            hint = nearest(flag, flags) or "."
            raise ConfigError(f"fetal submit {flag}: no such option{hint} See --help.")
        position += 1 if value or flag in _SWITCHES else 2
    return argv[: position + 1], argv[position + 1 :]


def _folder(working_dir: str) -> Path | None:
    """The checkout to upload; None where it is an archive that has been uploaded before.

    Raises:
        ConfigError: not a checkout.
    """
    if "://" in working_dir:
        return None
    folder = Path(working_dir)
    if not (folder / "ray_jobs").is_dir():
        raise ConfigError(
            f"--working-dir {working_dir}: has no folder ray_jobs, of which the job is a module. "
            "Run `fetal submit` in a checkout of this project, or name one."
        )
    return folder


def _check_uploaded(folder: Path, config: str | None) -> None:
    """Refuse a configuration file that the job will not find.

    Raises:
        ConfigError: it lies outside the folder, or is left out of the upload.
    """
    if config is None or not config.endswith(".toml") or storage.is_remote(config):
        return
    if Path(config).is_absolute() or Path(config) not in uploaded(folder):
        raise ConfigError(
            f"--config {config}: is not uploaded with the job. Put it beside pyproject.toml in "
            f"{folder.absolute()} and name it without a folder, or give an s3:// address."
        )


def _submission(args: SubmitArgs, entrypoint: Sequence[str], folder: Path | None) -> Submission:
    missing = [name for name in args.env if name not in os.environ]
    if missing:
        raise ConfigError(f"--env {', '.join(missing)}: not set here. Export it, or leave it.")
    runtime_env = {} if args.runtime_env is None else _read_runtime_env(args.runtime_env)
    variables = dict(runtime_env.pop("env_vars", {}))
    variables |= {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    if folder is not None and (commit := git_commit()) is not None:
        variables["FETAL_GIT_COMMIT"] = commit
    variables |= {name: os.environ[name] for name in args.env}
    words = ("python", "-m", f"ray_jobs.{entrypoint[0]}", *entrypoint[1:])
    return Submission(words, runtime_env, variables, args.env)


def _read_runtime_env(file: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(storage.read_bytes(file))
    except (yaml.YAMLError, StorageError) as error:
        raise ConfigError(f"--runtime-env {file}: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("env_vars", {}), dict):
        raise ConfigError(f"--runtime-env {file}: not a runtime environment, which is a mapping.")
    wrong = [k for k, v in found.get("env_vars", {}).items() if not isinstance(v, str)]
    if wrong:
        raise ConfigError(
            f"--runtime-env {file}: env_vars: not text: {', '.join(map(str, wrong))}. "
            'Put the values in quotes, as in OMP_NUM_THREADS: "2".'
        )
    return found


def _run(client: JobSubmissionClient, sent: Submission, args: SubmitArgs) -> int:
    """Submit the job, and follow it unless not asked to."""
    entrypoint = shlex.join(sent.entrypoint)
    twin = submission.running_twin(client, entrypoint)
    if twin is not None:
        raise ConfigError(
            f"job {twin} is doing the same now, and two would write to one place.\n"
            + submission.next_steps(twin, args.address)
        )
    job_id = args.submission_id or f"fetal-{args.stage}-{secrets.token_hex(4)}"
    try:
        with submission.told(client.get_address()):
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env=sent.environment() | {"working_dir": args.working_dir},
            )
        say(f"job {job_id} submitted")
        if args.no_wait:
            say(submission.next_steps(job_id, args.address))
            return 0
        return submission.follow(client, job_id)
    except KeyboardInterrupt:
        errors.print(submission.interrupted(job_id, args.address), markup=False)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(stage("submit"))
