"""The stages that run as jobs: how their arguments are read, and which of them are paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from fetal_core import storage
from fetal_core.config import nearest, parse
from fetal_core.errors import ConfigError, FetalError, StorageError
from fetal_core.model import NAMED_WEIGHTS
from ray_jobs.command import flag_value, parse_args
from ray_jobs.job import read_config


@dataclass(frozen=True)
class Stage:
    """A command that a cluster can run by itself.

    Attributes:
        module: of ``ray_jobs``.
        kind: the dataclass of its arguments, which that module holds.
        reads: arguments that are files or folders to be read.
        writes: arguments that are folders to be written.
        reader: function of the module that reads the arguments; None for plain ``parse_args``.
    """

    module: str
    kind: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    reader: str | None = None


STAGES = {
    "audit": Stage("audit", "AuditArgs", ("data", "against"), ("out",)),
    "prepare": Stage("prepare", "PrepareArgs", ("data",), ("out",)),
    "train": Stage("train", "TrainArgs", ("prepared",), ("runs",), "read_args"),
    "tune": Stage("tune", "TuneArgs", ("prepared",), ("runs",), "read_args"),
    "tune best": Stage("tune_best", "BestArgs", ("sweep",), ("out",)),
    "evaluate": Stage("evaluate", "EvaluateArgs", ("run",)),
    "crossval": Stage("crossval", "CrossvalArgs", ("data",), ("out",)),
    "run": Stage("run", "RunArgs", ("data",), ("out",)),
    "predict": Stage("predict", "PredictArgs", ("bundle", "files")),
    "export": Stage("export", "ExportArgs", ("bundle", "prepared")),
    "register": Stage("register", "RegisterArgs", ("bundle",), ("registry",)),
    "promote": Stage("promote", "PromoteArgs", (), ("registry",)),
    "rollback": Stage("rollback", "RollbackArgs", (), ("registry",)),
    "doctor": Stage("doctor", "DoctorArgs", (), ("storage",)),
}


@dataclass(frozen=True)
class Place:
    """A path among a stage's arguments."""

    flag: str
    uri: str
    written: bool


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


def places(stage: Stage, args: Any) -> Iterator[Place]:
    """Every path that the arguments name; paths in a configuration too."""
    for names, written in ((stage.reads, False), (stage.writes, True)):
        for name in names:
            value = getattr(args, name)
            for uri in (value,) if isinstance(value, str) else value or ():
                if uri:
                    yield Place(_flag(args, name), uri, written)
    job = getattr(args, "job", None)
    if job is not None and job.model.weights not in NAMED_WEIGHTS:
        yield Place("--model.weights", job.model.weights, False)


def _flag(args: Any, name: str) -> str:
    notes = getattr(get_type_hints(type(args), include_extras=True)[name], "__metadata__", ())
    positional = tyro.conf.Positional in notes
    return name.upper() if positional else f"--{name.replace('_', '-')}"


class PlaceError(FetalError):
    """Paths that the machines of the cluster do not see."""


def check_lasting(found: Sequence[Place]) -> None:
    """Refuse relative paths: a job's working directory is its own, and goes when it ends.

    Raises:
        PlaceError: all of them.
    """
    faults = [
        f"  - {place.flag} {place.uri}: "
        + ("would be written to" if place.written else "would be looked for in")
        + " the job's own folder, which is removed when the job ends"
        for place in found
        if not storage.is_remote(place.uri) and not Path(place.uri).is_absolute()
    ]
    if faults:
        raise PlaceError(
            "relative paths have no place on a cluster:\n"
            + "\n".join(faults)
            + "\nGive s3://BUCKET/PREFIX, or the absolute path of a folder that all machines of "
            "the cluster share."
        )


def check_shared(found: Sequence[Place], shared: Sequence[str], machines: Sequence[str]) -> None:
    """Refuse paths of this machine that other machines of the cluster need.

    Args:
        found: paths, none of them relative.
        shared: folders that are said to be the same on all machines.
        machines: names of the cluster's machines that are not this one.

    Raises:
        PlaceError: all of them.
    """
    if not machines:
        return
    faults = [
        f"  - {place.flag} {place.uri}"
        for place in found
        if not storage.is_remote(place.uri)
        and not any(Path(place.uri).is_relative_to(folder) for folder in shared)
    ]
    if faults:
        raise PlaceError(
            f"the cluster has other machines than this one ({', '.join(machines)}); these "
            "paths may not be the same there:\n"
            + "\n".join(faults)
            + "\nGive s3://BUCKET/PREFIX, or name the folder that all of them share: "
            "--shared FOLDER."
        )
