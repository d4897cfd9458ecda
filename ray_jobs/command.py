"""What all commands share: flags over TOML, errors without tracebacks, log handlers."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from fetal_core import s3, storage
from fetal_core.errors import FetalError
from ray_jobs.console import errors
from ray_jobs.flags import read_flags
from ray_jobs.signals import INTERRUPTED, TERMINATED, asked_to_end

if TYPE_CHECKING:
    from ray_jobs.job import Job

ArgsT = TypeVar("ArgsT")

CUT_OFF = 1
_JOB_FOLDER = "_ray_pkg_"  # as Ray names the folders that it uploads


def parse_args(
    kind: type[ArgsT],
    argv: Sequence[str],
    prog: str,
    folder: Callable[[ArgsT], str] | None = None,
    base: Callable[[Sequence[str]], Job] | None = None,
) -> ArgsT:
    """Read flags into a dataclass; in a job's own folder, paths have to lead out of it.

    A field ``job`` starts from what ``base`` makes of the words; without it, from the file of
    ``--config``; without that flag, from the settings saved in ``folder(args)``, else in the folder
    that the first field names. Flags override them all.

    Raises:
        ConfigError: the configuration is not valid, or settings of it do not go together.
        StorageError: its file cannot be read.
        PlaceError: a path would be lost with the job's folder.
    """
    args = _read_args(kind, argv, prog, folder, base)
    if Path.cwd().name.startswith(_JOB_FOLDER):
        from ray_jobs.places import check_lasting, places

        check_lasting(list(places(args)))
    return args


def _read_args(
    kind: type[ArgsT],
    argv: Sequence[str],
    prog: str,
    folder: Callable[[ArgsT], str] | None,
    base: Callable[[Sequence[str]], Job] | None,
) -> ArgsT:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    if not any(field.name == "job" for field in fields):
        return read_flags(kind, argv, prog)
    # Recipes know the network, which imports torch: only where a command takes one.
    from ray_jobs.job import Job, load_job, load_saved
    from ray_jobs.workspace import RECIPE

    if base is not None:
        return _parse(kind, base(argv), argv, prog)
    config = flag_value(argv, "config")
    if config is not None:
        return _parse(kind, load_job(config), argv, prog)
    for word in argv:
        if not word.startswith("-") and storage.is_file(storage.join(word, RECIPE)):
            args = _parse(kind, load_saved(storage.join(word, RECIPE)), argv, prog)
            if getattr(args, fields[0].name) == word:
                break
    else:
        args = _parse(kind, Job(), argv, prog)
    saved = storage.join(folder(args), RECIPE) if folder is not None else None
    if saved is not None and storage.is_file(saved):
        return _parse(kind, load_saved(saved), argv, prog)
    return args


def entry(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's error becomes a message and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    s3.tell_at_once()
    try:
        code = main(sys.argv[1:] if argv is None else argv) or 0
        sys.stdout.flush()
        return code
    except FetalError as error:
        errors.print("[bold red]error:[/] ", end="")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        word, code = ("stopped", TERMINATED) if asked_to_end() else ("interrupted", INTERRUPTED)
        errors.print(f"{word}; run the same command again to continue")
        return code
    except BrokenPipeError:
        return cut_off()


def cut_off() -> int:
    """End quietly when whoever read the output has seen enough, as ``head`` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CUT_OFF


def stage(name: str, argv: Sequence[str] | None = None) -> int:
    """Run the command of ``ray_jobs.NAME``, from the module of that name.

    ``python -m`` calls its module ``__main__``, whose functions Ray would send to the workers by
    value, with all they refer to.
    """
    return entry(import_module(f"ray_jobs.{name}").main, argv)


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """What follows ``--name`` among the words, None where it is not given."""
    for position, word in enumerate(argv):
        if word == f"--{name}" and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith(f"--{name}="):
            return word.removeprefix(f"--{name}=")
    return None


def _parse(kind: type[ArgsT], job: Job, argv: Sequence[str], prog: str) -> ArgsT:
    """Flags over ``job`` and the dataclass's own defaults."""
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name == "job":
            defaults["job"] = job
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        else:
            defaults[field.name] = tyro.MISSING
    return read_flags(kind, argv, prog, kind(**defaults))
