"""``fetal evaluate``: calibrate a run's model, measure it on the untouched test part, report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import ray.data
import torch
import tyro
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from fetal_core import storage
from fetal_core.batches import evaluation_batch
from fetal_core.bundle import Bundle, BundleInfo, read_info, write_info
from fetal_core.calibrate import Temperature, Threshold, choose_threshold, fit_temperature
from fetal_core.errors import DataError, Problem, StaleInputError
from fetal_core.evaluate import Evaluation, evaluate
from fetal_core.machine import cores
from fetal_core.manifest import Manifest
from fetal_core.metrics import Predictions
from fetal_core.model import trainable_parameters
from fetal_core.predict import Predictor
from fetal_core.recipe import Recipe
from fetal_core.report import write_report
from fetal_core.report_parts import DataSummary, ReportContext
from fetal_core.rows import RowStore
from fetal_core.runlog import training_history
from fetal_core.shards import ShardIndex, read_part
from fetal_core.split import Split
from ray_jobs.blocks import read_shards, shard_files
from ray_jobs.cluster import connected, use_gpu
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say
from ray_jobs.failures import user_error
from ray_jobs.tracked_run import headline, run_params
from ray_jobs.tracking import tracker
from ray_jobs.workspace import Prepared, Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateOutcome:
    """What an evaluation found and where it wrote it."""

    run: Run
    evaluation: Evaluation
    temperature: Temperature
    threshold: Threshold


def evaluate_run(run_uri: str, cluster: ClusterConfig) -> EvaluateOutcome:
    """Calibrate on the calibration part, measure on the test part, write metrics and report.

    Raises:
        StorageError: not a finished run, or its cohort is gone.
        ModelError: its bundle is missing or damaged.
        StaleInputError: the cohort is not the one the model was trained on.
        DataError: the test part is empty.
    """
    run = Run(storage.absolute(run_uri))
    prepared, recipe = run.inputs()
    manifest, split, index = prepared.load()
    info = Bundle.load(run.bundle_uri).info
    if info.hashes["shards"] != index.fingerprint:
        raise StaleInputError(
            f"{run.uri}: its model was trained on other shards than {prepared.uri} holds now. "
            "Train again, or restore the cohort."
        )
    tracking = tracker()
    with connected():
        parts = predict_parts(run.bundle_uri, prepared, index, ("calib", "test"), cluster)
    calib, test = parts["calib"], parts["test"]
    temperature = fit_temperature(calib.logits_NK, calib.labels_N)
    threshold = choose_threshold(
        calib.probabilities_NK(temperature.value), calib.labels_N, recipe.calibrate
    )
    found = evaluate(test, temperature.value, threshold.value, recipe.evaluate)
    outcome = EvaluateOutcome(run, found, temperature, threshold)
    _write(outcome, prepared, manifest, split, index, info, recipe)
    params = run_params(recipe, index.fingerprint)
    figures = headline(found.to_json())
    tracking.amend(run.uri, params, figures, (run.report_uri, run.metrics_uri))
    return outcome


def predict_parts(
    bundle_uri: str,
    prepared: Prepared,
    index: ShardIndex,
    parts: Iterable[str],
    cluster: ClusterConfig,
) -> dict[str, Predictions]:
    """Scores of every row of some parts, computed by Ray Data."""
    gpu = use_gpu(cluster)
    threads = cluster.threads_per_worker or max(1, cores() // cluster.workers)
    wanted = {part: index.parts.get(part, ()) for part in parts}
    files = shard_files(prepared.shards_uri, index, wanted)
    if not files:
        raise DataError("nothing to evaluate:", [_empty("calib and test")])
    score: Any = _score
    dataset = read_shards(files, include_paths=True).map_batches(
        score,
        fn_kwargs={
            "bundle_uri": bundle_uri,
            "created": read_info(bundle_uri).created,
            "device": "cuda" if gpu else "cpu",
            "threads": threads,
        },
        batch_size=evaluation_batch(index.preprocess.size_px),
        compute=ray.data.TaskPoolStrategy(size=cluster.workers),
        num_cpus=cluster.cpus_per_worker,
        num_gpus=1 if gpu else 0,
    )
    try:
        rows = dataset.take_all()
    except RayTaskError as error:
        raise user_error(error) or error from None
    return {part: _collect(part, rows, index) for part in wanted}


def _score(
    batch: dict[str, NDArray[Any]], bundle_uri: str, created: str, device: str, threads: int
) -> dict[str, Any]:
    """Ray Data task: scores of a batch of shard rows, without their pixels."""
    predictor = _predictor(bundle_uri, created, device)
    torch.set_num_threads(threads)
    size_px = predictor.info.preprocess.size_px
    pixels = [np.frombuffer(image, np.uint8) for image in batch["image"]]
    parts = [storage.name(path.rsplit("/", 1)[0]) for path in batch["path"]]
    return {
        "part": np.array(parts, object),
        "image_id": batch["image_id"],
        "patient": batch["patient"],
        "label": batch["label"],
        "logits": predictor.logits(np.stack(pixels).reshape(-1, size_px, size_px)),
    }


@lru_cache(maxsize=1)
def _predictor(bundle_uri: str, created: str, device: str) -> Predictor:
    """The model, loaded once in each worker process; ``created`` sets trainings apart."""
    return Predictor(Bundle.load(bundle_uri, device))


def _collect(part: str, rows: list[dict[str, Any]], index: ShardIndex) -> Predictions:
    mine = sorted((r for r in rows if r["part"] == part), key=lambda row: row["image_id"])
    if len(mine) != index.rows(part):
        raise RuntimeError(f"{len(mine)} rows of {part} came back, {index.rows(part)} went in")
    classes = index.classes
    logits = [row["logits"] for row in mine]
    return Predictions(
        image_ids=tuple(row["image_id"] for row in mine),
        patients=tuple(row["patient"] for row in mine),
        labels_N=np.array([row["label"] for row in mine], np.int64),
        logits_NK=np.stack(logits) if mine else np.zeros((0, len(classes)), np.float32),
        classes=classes,
    )


def _write(
    outcome: EvaluateOutcome,
    prepared: Prepared,
    manifest: Manifest,
    split: Split,
    index: ShardIndex,
    info: BundleInfo,
    recipe: Recipe,
) -> None:
    run, found = outcome.run, outcome.evaluation
    metrics = found.to_json() | {
        "calibration_part": {**vars(outcome.temperature), "threshold": vars(outcome.threshold)},
        "hashes": info.hashes,
    }
    storage.write_json(run.metrics_uri, metrics)
    write_info(run.bundle_uri, _calibrated(info, outcome, metrics))
    context = ReportContext(
        title=f"Fetal planes: {run.name}",
        data=summarise(manifest, split, index),
        model=_facts(run, info),
        config=recipe.model_dump(mode="json"),
        history=training_history(run.uri),
        problems=[str(Problem(**p)) for p in storage.read_json(prepared.audit_uri)],
        versions=info.versions,
    )
    thumbnails = _thumbnails(prepared, index, [m.image_id for m in found.mistakes])
    page = write_report(found, context, thumbnails)
    storage.write_bytes(run.report_uri, page.encode())


def _calibrated(
    info: BundleInfo, outcome: EvaluateOutcome, metrics: Mapping[str, Any]
) -> BundleInfo:
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "auroc_macro", "intervals", "images")
    test = {key: metrics[key] for key in keys if key in metrics}
    return info.model_copy(
        update={
            "temperature": outcome.temperature.value,
            "threshold": outcome.threshold.value,
            "metrics": info.metrics | {"test": test},
        }
    )


def _facts(run: Run, info: BundleInfo) -> dict[str, object]:
    validation = info.metrics.get("validation", {})
    parameters = trainable_parameters(Bundle.load(run.bundle_uri).model)
    return {
        "architecture": info.architecture,
        "parameters": f"{parameters:,}",
        "best epoch": int(validation.get("epoch", 0)),
        "input": f"{info.preprocess.size_px} px, {info.preprocess.fit}",
        "git commit": info.git_commit or "unknown",
        "trained": info.created,
    }


def summarise(manifest: Manifest, split: Split, index: ShardIndex) -> DataSummary:
    """Images and patients of every part."""
    patient_of = dict(zip(manifest.ids, manifest.patients, strict=True))
    known = {p: {patient_of[i] for i in ids} - {None} for p, ids in split.parts.items()}
    return DataSummary(
        manifest_sha256=manifest.hash,
        split_sha256=split.hash,
        images={
            part: dict(zip(index.classes, counts, strict=True))
            for part, counts in index.class_counts.items()
        },
        patients={part: len(group) for part, group in known.items() if group},
    )


def _thumbnails(
    prepared: Prepared, index: ShardIndex, image_ids: list[str]
) -> dict[str, NDArray[np.uint8]]:
    if not image_ids:
        return {}
    size = index.preprocess.size_px
    store = RowStore(read_part(prepared.shards_uri, index, "test"), size)
    row_of = {image_id: row for row, image_id in enumerate(store.image_ids)}
    pixels = store.images([row_of[image_id] for image_id in image_ids]).squeeze(1).numpy()
    return dict(zip(image_ids, pixels, strict=True))


def _empty(part: str) -> Problem:
    return Problem("empty-part", part, "has no images", "Change `split` and prepare again.")


@dataclass
class EvaluateArgs:
    """Calibrate a run's model, measure it on the untouched test part and write the report."""

    run: tyro.conf.Positional[str]
    """Folder of the run, as `fetal train` printed it."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(EvaluateArgs, argv, "fetal evaluate")
    show(evaluate_run(args.run, args.cluster))


def show(outcome: EvaluateOutcome) -> None:
    """Print the headline figures and where the report is."""
    found, figures = outcome.evaluation, outcome.evaluation.summary
    patients = f" of {found.patients:,} patients" if found.patients else ""
    say(f"test part: {found.images:,} images{patients}, 95 % intervals by {found.bootstrap.unit}")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc_macro"):
        value, interval = getattr(figures, name), found.bootstrap.intervals.get(name)
        shown = "undefined" if value is None else f"{value:.3f}"
        low_high = f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        say(f"  {name.replace('_', ' '):<18} {shown}{low_high}")
    before, after = found.before.ece, figures.ece
    say(f"  calibration error  {before:.3f} before, {after:.3f} after temperature scaling")
    selective, threshold = found.selective, outcome.threshold
    if threshold.value is None:
        say(f"  every answer goes to review: {threshold.reason}")
    else:
        say(
            f"  accepted without review: {selective.coverage:.1%} of the images"
            + ("" if selective.error is None else f", {selective.error:.1%} of them wrong")
        )
    say(f"metrics: {outcome.run.metrics_uri}")
    say(f"report:  {outcome.run.report_uri}")


if __name__ == "__main__":
    sys.exit(stage("evaluate"))
