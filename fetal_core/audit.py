"""From a folder to a manifest: every check, all findings in one run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fetal_core import storage
from fetal_core.checks import check_rows
from fetal_core.duplicates import find_exact, find_near
from fetal_core.errors import DataError, Problem, StorageError, StoreAwayError
from fetal_core.files import ImageFile, list_images
from fetal_core.fingerprint import THUMB_HW, FilePrint, FramePrint, fingerprint_files
from fetal_core.image_limits import ImageLimits
from fetal_core.labels import LabelRow, LabelsConfig, read_labels, strip_suffix
from fetal_core.manifest import Manifest
from fetal_core.matching import FRAME_MARK, match_files, select_rows, unlabelled

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AuditResult:
    """Outcome of an audit.

    Attributes:
        manifest: the validated data set, None where there is an error.
        problems: all findings, errors first.
        counts: ``rows``, ``files``, ``images`` (frames that were read), ``patients``, ``errors``
            and ``warnings``.
    """

    manifest: Manifest | None
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The findings that stop a run."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    def raise_on_error(self) -> Manifest:
        """The manifest.

        Raises:
            DataError: there are errors; it holds all of them.
        """
        if self.manifest is None:
            errors = self.errors
            raise DataError(f"The data cannot be used: {len(errors)} error(s).", errors)
        return self.manifest


def audit(
    data_dir_uri: str,
    labels: LabelsConfig | None = None,
    limits: ImageLimits | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    allow_no_patients: bool = False,
    use_official_test: bool = True,
) -> AuditResult:
    """Check a folder of images and its label table, and build the manifest.

    Nothing is written, and bad data raise nothing: they become findings.

    Args:
        data_dir_uri: folder with the images, or with ``images/``, and the label table.
        workers: reading processes; None takes one for each core of this process.
        progress: called with the number of files read and their total.
        allow_no_patients: whether unknown patients are a warning only.
        use_official_test: whether the table's train/test column must keep patients apart.

    Raises:
        StoreAwayError: the images' store has ceased to answer.
    """
    labels, limits = labels or LabelsConfig(), limits or ImageLimits()
    root = storage.absolute(data_dir_uri)
    files, table_rows, problems = _inputs(root, labels)
    rows, found = select_rows(table_rows, labels)
    problems += found + check_rows(rows, labels.target, root, allow_no_patients, use_official_test)
    matches, found = match_files(rows, files)
    problems += found + (unlabelled(table_rows, files) if table_rows else [])
    prints, found = _read(root, matches, limits, workers, progress)
    problems += found
    classes = labels.classes or tuple(sorted({row.class_name(labels.target) for row in rows}))
    columns, thumbs = _frames(matches, prints, classes, labels)
    problems += find_exact(columns) + find_near(columns, thumbs)
    problems += _check_ids(columns, root, problems)
    manifest = None
    if not any(problem.severity == "error" for problem in problems):
        manifest = Manifest.from_rows(columns, classes, root)
    patients = len({row["patient"] for row in columns} - {None})
    counts = {"rows": len(table_rows), "files": len(files), "images": len(columns)}
    return _result(manifest, problems, {**counts, "patients": patients})


def _inputs(
    root: str, labels: LabelsConfig
) -> tuple[list[ImageFile], list[LabelRow], list[Problem]]:
    """The folder's image files, and the rows of its label table with their faults."""
    try:
        files = list_images(root)
        return files, *read_labels(root, labels, files)
    except storage.FileNameError:
        reason = "the name of a file in this folder is not valid UTF-8"
        return [], [], [Problem("bad-file-name", root, reason, "Find it with `ls -b`, rename it")]
    except StoreAwayError:
        raise
    except StorageError as error:
        return [], [], [Problem("unreadable-data", root, str(error), "Check the path")]


def _result(
    manifest: Manifest | None, problems: Sequence[Problem], counts: Mapping[str, int]
) -> AuditResult:
    ordered = tuple(sorted(problems, key=lambda problem: problem.severity))
    errors = sum(problem.severity == "error" for problem in ordered)
    totals = {**counts, "errors": errors, "warnings": len(ordered) - errors}
    log.info("audit: %s", ", ".join(f"{count} {name}" for name, count in totals.items()))
    return AuditResult(manifest, ordered, totals)


def _read(
    root: str,
    matches: Sequence[tuple[LabelRow, ImageFile]],
    limits: ImageLimits,
    workers: int | None,
    progress: Progress | None,
) -> tuple[dict[str, FilePrint], list[Problem]]:
    """Hashes of the files that can be read, by path, and a finding for each other file."""
    files = list({file.path: file for _, file in matches}.values())
    lines = {file.path: row.row for row, file in matches}
    prints: dict[str, FilePrint] = {}
    problems = []
    try:
        for done, found in enumerate(fingerprint_files(root, files, limits, workers), 1):
            if found.error is None:
                prints[found.path] = found
            else:
                kind, reason, remedy = found.error
                problems.append(Problem(kind, found.path, reason, remedy, lines[found.path]))
            if progress is not None:
                progress(done, len(files))
    except BrokenProcessPool:
        after = f"after {len(prints) + len(problems)} of {len(files)} images"
        problems.append(
            Problem(
                "reader-died",
                root,
                f"a process that reads images was killed {after}, perhaps for lack of memory",
                "Try again with one worker; the last file that it reports is near the cause",
            )
        )
    return prints, problems


def _frames(
    matches: Sequence[tuple[LabelRow, ImageFile]],
    prints: Mapping[str, FilePrint],
    classes: Sequence[str],
    config: LabelsConfig,
) -> tuple[list[dict[str, Any]], npt.NDArray[np.uint8]]:
    """Columns of the manifest, one row a frame, and the frames' thumbnails."""
    labels = {name: index for index, name in enumerate(classes)}
    excluded = {strip_suffix(name) for name in config.exclude}
    rows, thumbs = [], []
    for row, file in matches:
        if file.path not in prints:
            continue
        found = prints[file.path]
        for number, frame in enumerate(found.frames):
            mark = f"{FRAME_MARK}{number:04d}" if len(found.frames) > 1 else ""
            if row.image + mark in excluded:
                continue
            columns = _columns(row, found, frame, labels[row.class_name(config.target)])
            rows.append({"image_id": row.image + mark, "frame": number, **columns})
            thumbs.append(np.frombuffer(frame.thumb, np.uint8))
    return rows, np.array(thumbs, np.uint8).reshape(len(rows), THUMB_HW[0] * THUMB_HW[1])


def _columns(row: LabelRow, file: FilePrint, frame: FramePrint, label: int) -> dict[str, Any]:
    return {
        "path": file.path,
        "patient": row.patient,
        "plane": row.plane,
        "label": label,
        "brain_plane": row.brain_plane,
        "operator": row.operator,
        "machine": row.machine,
        "official_test": row.official_test,
        "row": row.row,
        "file_bytes": file.file_bytes,
        "sha256": file.sha256,
        "pixel_hash": frame.pixel_hash,
        "dhash": frame.dhash,
        "width_px": frame.width_px,
        "height_px": frame.height_px,
        "mode": file.mode,
    }


def _check_ids(
    columns: Sequence[Mapping[str, Any]], root: str, earlier: Sequence[Problem]
) -> list[Problem]:
    """Names of frames that are names of images too, and data without any image."""
    if not columns and not any(problem.severity == "error" for problem in earlier):
        reason = "no image is left after labels.classes and labels.exclude"
        return [Problem("no-images", root, reason, "Keep more classes or images")]
    counts = Counter(row["image_id"] for row in columns)
    reason, remedy = "an image and a frame of a sequence have this name", "Rename one of them"
    return [
        Problem("ambiguous-name", name, reason, remedy)
        for name, count in counts.items()
        if count > 1
    ]
