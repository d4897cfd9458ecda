"""The stages that run as jobs, and how their arguments are read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, get_type_hints

from fetal_core.config import nearest, parse
from fetal_core.errors import ConfigError, StorageError
from ray_jobs.command import flag_value, parse_args
from ray_jobs.job import read_config
from ray_jobs.places import STAGES, Stage


def find_stage(words: Sequence[str]) -> tuple[Stage, str, Sequence[str]]:
    """The stage that words begin with, its name, and the words that follow.

    Raises:
        ConfigError: no such stage, or one that does not run as a job.
    """
    name = words[0]
    if list(words[:2]) == ["tune", "best"]:
        return STAGES["tune best"], "tune best", words[2:]
    if name not in STAGES:
        known = [one for one in STAGES if " " not in one]
        raise ConfigError(
            f"{name}: not a stage that runs as a job{nearest(name, known) or '.'} "
            f"Stages: {', '.join(known)}. A service is started with `serve deploy`."
        )
    return STAGES[name], name, words[1:]


def read_stage(stage: Stage, name: str, argv: Sequence[str]) -> tuple[Any, str | None]:
    """The arguments as the stage itself would read them, and what could not be checked here.

    Settings that a prepared cohort or a run was saved with may lie where only the cluster reads
    them. Then flags are checked by themselves, and whether they fit those settings is not.

    Raises:
        FetalError: values that are not valid.
        SystemExit: unknown flags, or values of a wrong type.
    """
    module = import_module(f"ray_jobs.{stage.module}")
    kind = getattr(module, stage.kind)
    prog = f"fetal {name}"
    try:
        if stage.reader is not None:
            return getattr(module, stage.reader)(argv), None
        return parse_args(kind, argv, prog), None
    except StorageError as error:
        hidden = str(error)
    args = _read_alone(kind, argv, prog)
    return args, f"settings are checked against saved ones by the job, not here: {hidden}"


def _read_alone(kind: type, argv: Sequence[str], prog: str) -> Any:
    def base(words: Sequence[str]) -> Any:
        config = flag_value(words, "config")
        model = get_type_hints(kind)["job"]
        return model() if config is None else parse(model, read_config(config), config)

    return parse_args(kind, argv, prog, base=base)
