"""The stages that run on a cluster, and which of their arguments are paths of what kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from fetal_core import storage
from fetal_core.errors import FetalError
from fetal_core.model import NAMED_WEIGHTS


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


def places(args: Any) -> Iterator[Place]:
    """Every path that a stage's arguments name; the weights of a configuration too."""
    stage = next((one for one in STAGES.values() if one.kind == type(args).__name__), None)
    if stage is None:
        return
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
