"""Writes a cohort to a folder with a pool of processes; an interrupted run can be resumed."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from fetal_core import storage
from fetal_core.errors import FetalError, StorageError
from fetal_core.machine import cores
from fetal_core.phantom.cohort import PhantomConfig, Row
from fetal_core.phantom.rendering import render
from fetal_core.phantom.table import make_cohort, table_bytes

_LOG = logging.getLogger(__name__)
_GENERATOR_VERSION = 2
_PNG_END = bytes.fromhex("0000000049454e44ae426082")
_CHUNK = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WrittenCohort:
    """What `write_cohort` did."""

    out_dir: Path
    images: int
    patients: int
    written: int
    skipped: int


def write_cohort(
    config: PhantomConfig,
    out_dir: Path | str,
    workers: int | None = None,
    progress: Progress | None = None,
) -> WrittenCohort:
    """Write ``images/<name>.png``, ``phantom.json`` and, last, ``labels.csv`` into a folder.

    The bytes depend on the configuration alone. Images that an earlier run of the same
    configuration completed are kept.

    Args:
        config: the cohort.
        out_dir: folder to make, or one that this function began with the same configuration.
        workers: processes; default: the processors this process may use. 1 = no pool.
        progress: called with (images done, images in total).

    Raises:
        FetalError: the folder holds other things or another cohort, or a worker died.
        DataError: the table to imitate is not usable.
        StorageError: a file cannot be written.
    """
    rows = make_cohort(config)
    out = Path(out_dir)
    try:
        skipped = _write(rows, config, out, workers, progress)
    except BrokenProcessPool as error:
        raise FetalError(
            f"A worker process died while writing {out}, most likely for want of memory. "
            "Run again with fewer workers to resume."
        ) from error
    except OSError as error:
        raise StorageError(
            f"Cannot write the cohort to {out}: {error}. Free space or choose "
            "another folder, then run again to resume."
        ) from error
    _LOG.info("cohort of %d images in %s (%d kept)", len(rows), out, skipped)
    patients = len({row.patient for row in rows})
    return WrittenCohort(out, len(rows), patients, len(rows) - skipped, skipped)


def _write(
    rows: list[Row],
    config: PhantomConfig,
    out: Path,
    workers: int | None,
    progress: Progress | None,
) -> int:
    """Write what is missing and return how many images were there already."""
    _claim(out, config, rows)
    todo = [row for row in rows if not _is_complete(_image_path(out, row))]
    todo.sort(key=lambda row: row.machine)  # neighbours share cached geometries
    skipped = len(rows) - len(todo)
    for done, _ in enumerate(_render_all(todo, config, out, workers), start=skipped + 1):
        if progress is not None:
            progress(done, len(rows))
    _write_atomically(out / "labels.csv", table_bytes(rows))
    return skipped


def _claim(out: Path, config: PhantomConfig, rows: list[Row]) -> None:
    """Make the folder and its record, or check that the folder holds this very cohort."""
    identity = json.dumps(_identity(config), indent=2, sort_keys=True).encode() + b"\n"
    record = out / "phantom.json"
    if out.exists() and not out.is_dir():
        raise FetalError(f"{out} is a file. Choose another folder.")
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    if present and (not record.is_file() or record.read_bytes() != identity):
        kept = "another cohort" if record.is_file() else "other files"
        raise FetalError(f"{out} holds {kept}. Choose a new or empty folder.")
    images = out / "images"
    out.mkdir(parents=True, exist_ok=True)
    if not present:
        _write_atomically(record, identity)
    images.mkdir(exist_ok=True)
    _remove_leftovers(out)
    expected = {f"{row.image_name}.png" for row in rows}
    strange = sorted(present - {"phantom.json", "images", "labels.csv"})
    strange += sorted(path.name for path in images.iterdir() if path.name not in expected)
    if strange:
        raise FetalError(
            f"{out} holds files that are not part of the cohort, e.g. {strange[0]}. "
            "Remove them or choose another folder."
        )


def _identity(config: PhantomConfig) -> dict[str, object]:
    """Return what the bytes depend on: the table imitated by its content, not its path."""
    fields: dict[str, object] = {"generator_version": _GENERATOR_VERSION}
    if config.like is None:
        return fields | config.model_dump(exclude={"like"})
    digest = storage.sha256(config.like)
    return fields | {"like_sha256": digest, "seed": config.seed, "shortcut": config.shortcut}


def _remove_leftovers(out: Path) -> None:
    for path in [*out.glob(".*.tmp"), *(out / "images").glob(".*.tmp")]:
        path.unlink(missing_ok=True)


def _image_path(out: Path, row: Row) -> Path:
    return out / "images" / f"{row.image_name}.png"


def _is_complete(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size < len(_PNG_END):
        return False
    with path.open("rb") as file:
        file.seek(-len(_PNG_END), os.SEEK_END)
        return file.read() == _PNG_END


def _render_all(
    rows: list[Row], config: PhantomConfig, out: Path, workers: int | None
) -> Iterator[None]:
    task = partial(_write_image, out=out, seed=config.seed, shortcut=config.shortcut)
    n_workers = min(workers or cores(), max(len(rows) // _CHUNK, 1))
    if n_workers <= 1:
        yield from map(task, rows)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context) as pool:
        yield from _cancelling(pool, pool.map(task, rows, chunksize=_CHUNK))


def _cancelling(pool: ProcessPoolExecutor, results: Iterable[None]) -> Iterator[None]:
    """Yield results; drop what is still queued when the caller stops early."""
    try:
        yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_image(row: Row, out: Path, seed: int, shortcut: float) -> None:
    path = _image_path(out, row)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(render(row, seed, shortcut)).save(temporary, "PNG", compress_level=1)
    temporary.replace(path)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
