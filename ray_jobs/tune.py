"""``fetal tune``: a sweep on Ray Tune over anything in the configuration."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import ray.tune
import tyro
from ray.tune.schedulers import TrialScheduler

from fetal_core import storage
from fetal_core.config import merge, parse
from fetal_core.errors import ConfigError
from fetal_core.search import Candidate, candidates
from fetal_core.search_check import check_search
from fetal_core.study_config import check_study
from fetal_core.trials import Trial
from ray_jobs import tune_best
from ray_jobs.cluster import (
    check_capacity,
    check_reachable,
    connected,
    jobs_at_once,
    machines,
    use_gpu,
)
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.command import flag_value, parse_args, stage
from ray_jobs.job import check_weights, read_config
from ray_jobs.probe_features import probe_features
from ray_jobs.scheduler import make_scheduler
from ray_jobs.searcher import SweepSearcher
from ray_jobs.sweep import Sweep, SweepJob
from ray_jobs.sweep_view import Bookkeeper, sweep_view
from ray_jobs.tracked_sweep import TrackedSweep
from ray_jobs.tracking import tracker
from ray_jobs.training_inputs import Inputs
from ray_jobs.trial import Shared, run_trial
from ray_jobs.tune_report import Session, SweepOutcome, conclude, show
from ray_jobs.workspace import RECIPE, Prepared

_ATTEMPTS = 2
# A trial that has ended, how many have, and how many there will be.
OnTrial = Callable[[Trial, int, int], None]


def tune(
    prepared_uri: str,
    sweep_uri: str,
    job: SweepJob,
    max_concurrent: int | None = None,
    on_trial: OnTrial | None = None,
) -> SweepOutcome:
    """Run a sweep, or go on with the one that ``sweep_uri`` holds.

    Everything is checked before the first trial starts. The trials see the training and the
    validation part alone.

    Args:
        prepared_uri: the prepared cohort.
        sweep_uri: folder of the sweep.
        job: the recipe, the search and the resources of a trial.
        max_concurrent: trials at a time; None takes as many as fit the cluster.
        on_trial: gets every trial that has ended, how many have, and how many there will be.

    Raises:
        StorageError: nothing has been prepared.
        StaleInputError: the cohort is not the one that the sweep began with.
        ConfigError: the search, or a combination of its values, is not valid.
    """
    started = time.monotonic()
    prepared, sweep = Prepared(storage.absolute(prepared_uri)), Sweep(storage.absolute(sweep_uri))
    _, _, index = prepared.load()
    recipe, search = job.recipe(), job.search
    prepared.check_made_for(recipe)
    planned = _planned(job)
    sweep.begin(prepared, job, index.fingerprint)
    known = sweep.reopened()
    searcher = SweepSearcher(
        search, recipe, planned, known, lambda number, one: sweep.trial(number).begin(one)
    )
    if not searcher.left:
        return conclude(sweep, None)

    def ended(trial: Trial, done: int) -> None:
        if on_trial is not None:
            on_trial(trial, done, searcher.total)

    with TrackedSweep(tracker(), sweep, job, index.fingerprint) as tracked:
        books = Bookkeeper(sweep, search, known, tracked, ended)
        with connected():
            check_capacity(job.cluster)
            check_reachable(sweep.settings_uri)
            at_once = max_concurrent or trials_at_once(job.cluster)
            inputs = Inputs.load(prepared.shards_uri, index)
            shared = _shared(sweep, job, inputs, planned, at_once)
            _run(searcher, make_scheduler(search, recipe, known), shared, books, at_once)
        wall_s = time.monotonic() - started
        session = Session(wall_s, books.work_s, min(at_once, searcher.total))
        outcome = conclude(sweep, session)
        tracked.finish(*outcome.summary())
    return outcome


def _planned(job: SweepJob) -> list[Candidate]:
    """Refuse what cannot run; all trials, as far as they are known beforehand.

    Raises:
        ConfigError: the search, or a combination of its values, is not valid.
        StorageError: a file of pretrained weights is not there.
    """
    recipe, search = job.recipe(), job.search
    if job.cluster.min_workers is not None:
        raise ConfigError(
            "cluster.min_workers: the trials of a sweep have a fixed number of workers. Leave it "
            "out."
        )
    check_search(search, recipe)
    check_study(job.study, search)
    # TPE cannot say what it will try: random draws stand for it.
    drawn = search.model_copy(update={"algorithm": "random"})
    found = candidates(drawn if search.algorithm == "tpe" else search, recipe)
    for model in {one.recipe.model.weights: one.recipe.model for one in found}.values():
        check_weights(model)
    return [] if search.algorithm == "tpe" else found


def trials_at_once(cluster: ClusterConfig) -> int:
    """How many trials fit the cluster beside Ray Data, by their workers' CPUs and GPUs."""
    gpus = cluster.workers if use_gpu(cluster) else 0
    return jobs_at_once(cluster.workers * cluster.cpus_per_worker, gpus)


def _shared(
    sweep: Sweep, job: SweepJob, inputs: Inputs, planned: Sequence[Candidate], at_once: int
) -> Shared:
    gpu = use_gpu(job.cluster)
    configs = [one.recipe.fit_config() for one in planned] or [job.recipe().fit_config()]
    return Shared(
        sweep_uri=sweep.uri,
        inputs=inputs,
        cluster=job.cluster,
        gpu=gpu,
        metric=job.search.metric,
        features=probe_features(configs, inputs, gpu),
        keep_predictions=bool(job.search.arms),
        trials_a_machine=-(-at_once // machines()),
    )


def _run(
    searcher: SweepSearcher,
    scheduler: TrialScheduler,
    shared: Shared,
    books: Bookkeeper,
    at_once: int,
) -> None:
    alone = shared.cluster.workers == 1
    with tempfile.TemporaryDirectory(prefix="fetal-tune-") as scratch, _tune_settings():
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(
                ray.tune.with_parameters(run_trial, shared=shared), _resources(shared)
            ),
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=searcher.left,
                max_concurrent_trials=at_once,
                # A trial that drives workers of its own leaves with its process.
                reuse_actors=alone,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                name="trials",
                storage_path=scratch,
                callbacks=[books],
                failure_config=ray.tune.FailureConfig(max_failures=_ATTEMPTS - 1),
                verbose=0,
            ),
        )
        tuner.fit()


def _resources(shared: Shared) -> dict[str, float]:
    """What a trial's own process takes; its workers are Ray Train's to reserve."""
    if shared.cluster.workers > 1:
        # Tune refuses a trial that takes nothing.
        return {"CPU": 0.01}
    return {"CPU": shared.cluster.cpus_per_worker, "GPU": 1 if shared.gpu else 0}


@contextmanager
def _tune_settings() -> Iterator[None]:
    """Tune without files and messages of its own; Ctrl-C is a KeyboardInterrupt."""
    wanted = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@dataclass
class TuneArgs:
    """Search settings on a prepared cohort; `fetal tune best SWEEP --out BUNDLE` takes the best."""

    job: Annotated[SweepJob, tyro.conf.arg(name="")]
    prepared: tyro.conf.Positional[str] = ""
    """Folder that `fetal prepare` wrote; its settings are those of all trials, unless named."""
    name: str = "sweep"
    """Name of the sweep; the same name and settings again continue it."""
    runs: str = "runs"
    """Folder of all runs and sweeps."""
    config: str | None = None
    """Named configuration, or path of a .toml file, with the tables [search] and any others."""
    resume: str | None = None
    """Name of an interrupted sweep to go on with, as it was begun."""
    max_concurrent: int | None = None
    """Trials at a time; as many as fit the cluster by default."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    if argv and argv[0] == "best":
        tune_best.main(argv[1:])
        return
    args = read_args(argv)
    prepared, name = args.prepared, args.name
    if args.resume is not None:
        name = args.resume
        prepared = prepared or _sweep(argv, name).settings()[0].uri
    show(tune_shown(prepared, storage.join(args.runs, name), args.job, args.max_concurrent))


def read_args(argv: Sequence[str]) -> TuneArgs:
    """The arguments; settings that are not given are the resumed sweep's, or the cohort's."""
    args = parse_args(TuneArgs, argv, "fetal tune", base=_settings)
    if not args.prepared and args.resume is None:
        raise ConfigError("give the folder that `fetal prepare` wrote, or --resume NAME.")
    if args.max_concurrent is not None and args.max_concurrent < 1:
        raise ConfigError(f"--max-concurrent {args.max_concurrent}: at least one is needed.")
    return args


def tune_shown(
    prepared: str, sweep_uri: str, job: SweepJob, max_concurrent: int | None = None
) -> SweepOutcome:
    """``tune`` with a bar and a line for each trial that ends."""
    with sweep_view(job.search.metric) as view:
        return tune(prepared, sweep_uri, job, max_concurrent, view)


def _settings(argv: Sequence[str]) -> SweepJob:
    """What flags start from: the resumed sweep's settings, or a file over the cohort's own."""
    resume, config = flag_value(argv, "resume"), flag_value(argv, "config")
    if resume is not None:
        if config is not None:
            raise ConfigError("--resume goes on with the sweep's own settings: leave out --config.")
        return _sweep(argv, resume).settings()[1]
    words = [word for word in argv if not word.startswith("-")]
    prepared = next((w for w in words if storage.is_file(storage.join(w, RECIPE))), None)
    return load_sweep(config, prepared)


def load_sweep(config: str | None, prepared: str | None) -> SweepJob:
    """A configuration over the settings that a cohort was prepared with.

    Raises:
        ConfigError: no such name, or the file is not valid; all faults together.
        StorageError: a file cannot be read.
    """
    own = {} if prepared is None else storage.read_json(storage.join(prepared, RECIPE))
    tables = {} if config is None else read_config(config)
    return parse(SweepJob, merge(own, tables), config or "the cohort's settings")


def _sweep(argv: Sequence[str], name: str) -> Sweep:
    return Sweep(storage.absolute(storage.join(flag_value(argv, "runs") or "runs", name)))


if __name__ == "__main__":
    sys.exit(stage("tune"))
