"""``fetal crossval``: repeated cross-validation by patient, folds in parallel on Ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import ray
import torch
import tyro

from fetal_core import storage
from fetal_core.audit import audit
from fetal_core.config import digest
from fetal_core.crossval import CrossvalResult, crossval_summary
from fetal_core.crossval_report import write_crossval_report
from fetal_core.errors import ConfigError, Problem
from fetal_core.fit_config import FitConfig
from fetal_core.folds import fit_fold, inner_validation, probe_fold, shares_features
from fetal_core.losses import make_loss
from fetal_core.machine import cores
from fetal_core.manifest import Manifest
from fetal_core.metrics import Predictions
from fetal_core.model import build
from fetal_core.probe import extract
from fetal_core.report_parts import DataSummary, ReportContext
from fetal_core.run_context import LocalContext
from fetal_core.shards import ShardIndex
from fetal_core.split import Fold, make_folds
from fetal_core.steps import StepEngine
from ray_jobs.blocks import load_blocks, row_store
from ray_jobs.cluster import connected, jobs_at_once, use_gpu
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.command import parse_args, stage
from ray_jobs.console import progress_bar, say, show_problems
from ray_jobs.failures import user_error
from ray_jobs.job import Job, check_weights
from ray_jobs.prepare import Progress, write_shards

PART = "all"


@dataclass(frozen=True)
class CrossvalOutcome:
    """What a cross-validation found and where it wrote it."""

    result: CrossvalResult
    report_uri: str
    metrics_uri: str


def crossval(
    data: str, out: str, job: Job, folds: int, repeats: int, progress: Progress | None = None
) -> CrossvalOutcome:
    """Score every image by a model that has not seen its patient, ``repeats`` times.

    Raises:
        DataError: problems of the cohort, all of them, or too few patients.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats {repeats}: at least one is needed.")
    out, recipe = storage.absolute(out), job.recipe()
    check_weights(recipe.model)
    found = audit(
        data,
        recipe.labels,
        recipe.limits,
        allow_no_patients=not recipe.split.by_patient,
        use_official_test=False,
    )
    manifest = found.raise_on_error()
    show_problems(found.problems)
    planned = make_folds(manifest, folds, repeats, recipe.train.seed, recipe.split.by_patient)
    shards_uri = storage.join(
        out, "shards", digest([manifest.hash, recipe.preprocess.digest()])[:12]
    )
    with connected():
        index, _ = write_shards(manifest, {PART: manifest.ids}, "crossval", shards_uri, recipe)
        predictions = _run_folds(
            recipe.fit_config(), job.cluster, manifest, index, shards_uri, planned, progress
        )
    result = crossval_summary(predictions, recipe.evaluate)
    return _write(result, out, job, manifest, index, found.problems)


def _run_folds(
    config: FitConfig,
    cluster: ClusterConfig,
    manifest: Manifest,
    index: ShardIndex,
    shards_uri: str,
    planned: Sequence[Fold],
    progress: Progress | None,
) -> dict[tuple[int, int], Predictions]:
    blocks = load_blocks(shards_uri, index, (PART,))[PART]
    gpu = use_gpu(cluster)
    options = {"num_cpus": cluster.cpus_per_worker, "num_gpus": 1 if gpu else 0}
    device = "cuda" if gpu else "cpu"
    threads = cluster.threads_per_worker or cluster.cpus_per_worker
    features: Any = None
    if shares_features(config):
        extract_all = ray.remote(_features).options(**options)
        features = extract_all.remote(config, index, blocks, device, cores())
    score = ray.remote(_fold).options(**options)
    at_once = jobs_at_once(cluster.cpus_per_worker, 1 if gpu else 0)
    waiting = list(planned)
    running: dict[Any, tuple[int, int]] = {}
    done: dict[tuple[int, int], Predictions] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            fold = waiting.pop(0)
            ids = (*_selection(config, manifest, fold), fold.test_ids)
            task = score.remote(config, index, blocks, features, ids, device, threads)
            running[task] = (fold.repeat, fold.fold)
        (task,), _ = ray.wait(list(running))
        try:
            done[running.pop(task)] = ray.get(task)
        except ray.exceptions.RayError as error:
            raise user_error(error) or error from None
        if progress is not None:
            progress(len(done), len(planned))
    return done


def _selection(
    config: FitConfig, manifest: Manifest, fold: Fold
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Rows to train on, and rows to choose the best epoch by.

    A convex problem has one solution and nothing to choose: it takes all rows.
    """
    if config.optim.name == "lbfgs":
        return fold.train_ids, fold.train_ids
    return inner_validation(manifest, fold.train_ids, config.train.seed)


def _features(
    config: FitConfig, index: ShardIndex, blocks: list[Any], device: str, threads: int
) -> torch.Tensor:
    torch.set_num_threads(threads)
    store = row_store(blocks, index.preprocess.size_px)
    classes = len(index.classes)
    model = build(config.model, classes, 0.0, 1.0, config.train.seed, store.size_px)
    loss = make_loss(config.loss, store.class_counts(classes), index.classes)
    context = LocalContext(Path(), device)
    model.to(context.device)
    engine = StepEngine(model, loss, context, config.train.precision)
    return extract(engine, store).features_NF.cpu()


def _fold(
    config: FitConfig,
    index: ShardIndex,
    blocks: list[Any],
    features_NF: torch.Tensor | None,
    ids: tuple[Sequence[str], Sequence[str], Sequence[str]],
    device: str,
    threads: int,
) -> Predictions:
    torch.set_num_threads(threads)
    store = row_store(blocks, index.preprocess.size_px)
    if features_NF is None:
        return fit_fold(config, store, index.classes, *ids, device)
    return probe_fold(config, store, features_NF, index.classes, *ids)


def _write(
    result: CrossvalResult,
    out: str,
    job: Job,
    manifest: Manifest,
    index: ShardIndex,
    problems: Sequence[Problem],
) -> CrossvalOutcome:
    context = ReportContext(
        title="Fetal planes: cross-validation",
        data=DataSummary(
            manifest_sha256=manifest.hash,
            split_sha256=digest([job.train.seed, len(result.repeats), len(result.folds)]),
            images={PART: manifest.counts()},
            patients={PART: result.patients or 0},
        ),
        model={
            "architecture": job.model.architecture,
            "weights": storage.name(job.model.weights),
            "mode": job.train.mode,
            "input": f"{index.preprocess.size_px} px, {index.preprocess.fit}",
        },
        config=job.recipe().model_dump(mode="json"),
        problems=[str(problem) for problem in problems],
    )
    report_uri, metrics_uri = storage.join(out, "report.html"), storage.join(out, "metrics.json")
    storage.write_json(metrics_uri, result.to_json())
    storage.write_bytes(report_uri, write_crossval_report(result, context).encode())
    return CrossvalOutcome(result, report_uri, metrics_uri)


@dataclass
class CrossvalArgs:
    """Repeated cross-validation grouped by patient; every image is scored in every repeat."""

    data: tyro.conf.Positional[str]
    """Folder with the images and the label table."""
    job: Annotated[Job, tyro.conf.arg(name="")]
    config: str | None = None
    """Named configuration, or path of a .toml file; the flags below override it."""
    folds: int = 5
    """Groups of patients in each repeat."""
    repeats: int = 5
    """Times that the patients are divided anew."""
    out: str = "runs/crossval"
    """Folder for shards, metrics and report."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(CrossvalArgs, argv, "fetal crossval")
    with progress_bar("cross-validation", "folds") as progress:
        outcome = crossval(args.data, args.out, args.job, args.folds, args.repeats, progress)
    show(outcome)


def show(outcome: CrossvalOutcome) -> None:
    """Print the headline figures and where the report is."""
    result = outcome.result
    say(
        f"{result.images:,} images of {result.patients or 0:,} patients, "
        f"{len(result.folds)} folds in {len(result.repeats)} repeats; mean over the repeats and "
        f"95 % interval by {result.bootstrap.unit}"
    )
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        value, interval = getattr(result.mean, name), result.bootstrap.intervals.get(name)
        low_high = f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        say(f"  {name.replace('_', ' '):<18} {value:.3f}{low_high}")
    say(f"metrics: {outcome.metrics_uri}")
    say(f"report:  {outcome.report_uri}")


if __name__ == "__main__":
    sys.exit(stage("crossval"))
