"""``fetal predict``: planes of image files, as a table or as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import tyro
from rich.table import Table

from fetal_core import storage
from fetal_core.bundle import Bundle
from fetal_core.errors import DataError, FetalError, ImageError, Problem
from fetal_core.files import find_images
from fetal_core.predict import Prediction, Predictor
from ray_jobs.command import parse_args, stage
from ray_jobs.console import console


@dataclass
class PredictArgs:
    """Name the plane of image files: PNG, JPEG, TIFF, BMP or DICOM, every frame of each."""

    bundle: tyro.conf.Positional[str]
    """Model bundle, as `fetal train` wrote it."""
    files: tyro.conf.Positional[tuple[str, ...]]
    """Images, or folders of images: files with an image's suffix, and DICOM with any or none."""
    json: bool = False
    """One JSON object a frame instead of a table."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(PredictArgs, argv, "fetal predict")
    found, problems = predict_files(args.bundle, args.files)
    if args.json:
        for file, prediction in found:
            console.file.write(json.dumps({"file": file, **asdict(prediction)}) + "\n")
    elif found:
        show(found)
    if problems:
        raise DataError(f"{len(problems)} files have no prediction:", problems)


def predict_files(
    bundle_uri: str, files: Iterable[str]
) -> tuple[list[tuple[str, Prediction]], list[Problem]]:
    """Predictions of all readable files, and a finding for each of the others.

    Raises:
        DataError: there is no file to predict.
        ModelError: the bundle cannot be used.
    """
    images, problems = _expand(files)
    if not images:
        raise DataError("Nothing to predict: name images, or folders that hold some.", problems)
    predictor = Predictor(Bundle.load(bundle_uri))
    found = []
    for file, content in zip(images, storage.read_ahead(images), strict=True):
        try:
            answers = predictor.predict_bytes(content())
            found += [(file, prediction) for prediction in answers]
        except ImageError as error:
            problems.append(Problem(error.kind, file, error.reason, error.remedy))
        except FetalError as error:
            problems.append(Problem("unreadable-file", file, str(error), "Check the path"))
    return found, problems


def show(found: Sequence[tuple[str, Prediction]]) -> None:
    """Print predictions as a table."""
    table = Table("file", "frame", "plane", "confidence", "decision", box=None)
    for file, prediction in found:
        table.add_row(
            storage.name(file),
            str(prediction.frame),
            prediction.plane,
            f"{prediction.confidence:.1%}",
            prediction.decision,
        )
    console.print(table)
    console.print("Research use only.", style="dim")


def _expand(files: Iterable[str]) -> tuple[list[str], list[Problem]]:
    """The files, with folders replaced by their images, and a finding for each without any."""
    images, problems = [], []
    for file in files:
        found = find_images(file) if storage.is_dir(file) else [file]
        images += found
        if not found:
            reason, remedy = "no image lies in this folder", "Check the path"
            problems.append(Problem("no-images", file, reason, remedy))
    return images, problems


if __name__ == "__main__":
    sys.exit(stage("predict"))
