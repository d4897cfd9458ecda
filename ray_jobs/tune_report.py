"""What is left when a sweep has ended: report, numbers, and the best trial as a run."""

from __future__ import annotations

from dataclasses import dataclass

from fetal_core import storage
from fetal_core.arms import choose
from fetal_core.bundle import Bundle, software_versions
from fetal_core.checkpoint import load_trainer
from fetal_core.errors import Problem
from fetal_core.importance import value_text
from fetal_core.runlog import METRICS
from fetal_core.scoring import load_predictions, trained
from fetal_core.shards import ShardIndex
from fetal_core.study import StudyResult, TrialPredictions, compare
from fetal_core.study_config import StudyConfig
from fetal_core.study_report import study_lines, study_section
from fetal_core.sweep_report import SweepContext, sweep_figures, write_sweep_report
from fetal_core.trials import Trial, best_trial
from ray_jobs.console import say
from ray_jobs.evaluate import summarise
from ray_jobs.sweep import Sweep
from ray_jobs.train import describe
from ray_jobs.workspace import Prepared, Run


@dataclass(frozen=True)
class SweepOutcome:
    """A sweep that has ended.

    Attributes:
        best: the best trial, None where all have failed.
        study: the comparison of the arms, None without hypotheses.
    """

    sweep: Sweep
    trials: list[Trial]
    best: Trial | None
    metric: str
    study: StudyResult | None

    def summary(self) -> tuple[dict[str, float], list[str]]:
        """Headline numbers by name, and the files to read."""
        score = None if self.best is None else self.best.score(self.metric)
        numbers = {} if score is None else {f"best_{self.metric}": score}
        return numbers, [self.sweep.report_uri, self.sweep.figures_uri]


@dataclass(frozen=True)
class Session:
    """One go of a sweep.

    Attributes:
        wall_s: time that it took.
        work_s: time of the epochs that it trained.
        concurrency: trials at a time.
    """

    wall_s: float
    work_s: float
    concurrency: int


def conclude(sweep: Sweep, session: Session | None) -> SweepOutcome:
    """Write the best trial's run, the report and its numbers.

    Args:
        sweep: the folder.
        session: what has been done now; None where nothing was left to do.
    """
    if session is None:
        session = _last_session(sweep)
    prepared, job = sweep.settings()
    manifest, split, index = prepared.load()
    trials, search = sweep.trials(), job.search
    best = best_trial(trials, search.metric)
    if best is not None and not _is_written(sweep, best, index):
        write_run(sweep, best, prepared, index, sweep.best)
    study = _study(sweep, trials, job.study) if job.study.hypotheses else None
    context = SweepContext(
        title=f"Fetal planes: sweep {storage.name(sweep.uri)}",
        data=summarise(manifest, split, index),
        model={"input": f"{index.preprocess.size_px} px, {index.preprocess.fit}"},
        config=job.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        problems=[str(Problem(**p)) for p in storage.read_json(prepared.audit_uri)],
        versions=software_versions(),
        **vars(session),
    )
    extra = [study_section(study)] if study else []
    page = write_sweep_report(trials, search, job.recipe(), context, extra)
    figures = sweep_figures(trials, search, context)
    if study is not None:
        figures["study"] = study.to_json()
    storage.write_json(sweep.figures_uri, figures)
    storage.write_bytes(sweep.report_uri, page.encode())
    return SweepOutcome(sweep, trials, best, search.metric, study)


def write_run(sweep: Sweep, trial: Trial, prepared: Prepared, index: ShardIndex, run: Run) -> None:
    """The trial as a finished training run, which can be evaluated."""
    recipe = sweep.recipe(trial)
    folder = sweep.trial(trial.number)
    bundle = trial_bundle(sweep, trial, index)
    # Without a model while its parts are exchanged.
    storage.remove(run.uri)
    run.begin(prepared, recipe, index.fingerprint)
    metrics = storage.read_bytes(storage.join(folder.uri, METRICS))
    storage.write_bytes(storage.join(run.uri, METRICS), metrics)
    bundle.save(run.bundle_uri)


def trial_bundle(sweep: Sweep, trial: Trial, index: ShardIndex) -> Bundle:
    """A trial's best checkpoint as a model bundle, with the validation figures it was saved with.

    Raises:
        ModelError: its checkpoints are gone.
    """
    recipe = sweep.recipe(trial)
    with sweep.trial(trial.number).checkpoints.best() as folder:
        model = trained(recipe.model, len(index.classes), index.mean, index.std, folder)
        progress = load_trainer(folder)["progress"]
    best = progress["history"][progress["best_epoch"] - 1]
    return Bundle(describe(index, recipe, {"validation": best}), model)


def _is_written(sweep: Sweep, trial: Trial, index: ShardIndex) -> bool:
    """Whether the best run is this trial's already; it may have been evaluated since."""
    run = sweep.best
    if not run.is_trained or storage.read_json(run.info_uri)["shards"] != index.fingerprint:
        return False
    _, recipe = run.inputs()
    return recipe == sweep.recipe(trial)


def _last_session(sweep: Sweep) -> Session:
    if not storage.is_file(sweep.figures_uri):
        return Session(0.0, 0.0, 1)
    figures = storage.read_json(sweep.figures_uri)
    return Session(figures["wall_s"], figures["work_s"], figures["concurrency"])


def _study(sweep: Sweep, trials: list[Trial], config: StudyConfig) -> StudyResult:
    _, job = sweep.settings()
    found = {}
    for group in choose(trials, job.search).values():
        for trial in group:
            folder = sweep.trial(trial.number)
            parts = {p: load_predictions(folder.predictions_uri(p)) for p in ("val", "train")}
            found[trial.number] = TrialPredictions(**parts)
    return compare(trials, job.search, config, found)


def show(outcome: SweepOutcome) -> None:
    """Print how the sweep ended and where its report is."""
    if outcome.study is not None:
        for line in study_lines(outcome.study):
            say(line)
    best = outcome.best
    if best is None:
        say("no trial has come to an end with a model; the report tells why")
    else:
        changes = ", ".join(f"{key} = {value_text(x)}" for key, x in best.assignment.items())
        say(
            f"best trial {best.number}: {outcome.metric} {best.score(outcome.metric):.3f} on "
            f"validation, with {changes or 'the settings as they stand'}"
        )
        say(f"its model: {outcome.sweep.best.bundle_uri}")
        say(f"on the test part: fetal evaluate {outcome.sweep.best.uri}")
    say(f"report: {outcome.sweep.report_uri}")
