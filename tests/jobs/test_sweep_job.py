"""A sweep of twelve trials at a size where learning shows: what it gains and what ASHA saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cohorts import recipe
from fetal_core.phantom import PhantomConfig, write_cohort
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.prepare import prepare
from ray_jobs.sweep import SweepJob
from ray_jobs.tune import load_sweep, tune
from ray_jobs.tune_report import SweepOutcome

pytestmark = [pytest.mark.ray, pytest.mark.heavy]

SETTINGS: dict[str, Any] = {
    "preprocess": {"size_px": 48},
    "split": {"test": 0.2, "val": 0.25, "calib": 0.1, "use_official_test": False},
    "model": {"architecture": "shufflenet_v2_x0_5"},
    "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "augment": {"rotation_deg": 15, "crop": 0.15},
    "train": {"epochs": 9, "batch_size": 16},
}


@pytest.fixture(scope="module")
def sweeps(
    cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[SweepJob, SweepOutcome]]:
    """The trials of the configuration ``sweep``, with ASHA and without."""
    folder = tmp_path_factory.mktemp("sweep")
    write_cohort(PhantomConfig(images=800, patients=160, seed=5), folder / "cohort")
    settings = recipe(**SETTINGS)
    prepare(str(folder / "cohort"), str(folder / "prepared"), settings)
    job = load_sweep("sweep", str(folder / "prepared"))
    # One thread, and one trial at a time: any number of cores gives the same curves and order.
    cluster = ClusterConfig(threads_per_worker=1)
    found = {}
    for scheduler in ("asha", "none"):
        search = job.search.model_copy(update={"scheduler": scheduler})
        own = job.model_copy(update={"search": search, "cluster": cluster})
        outcome = tune(str(folder / "prepared"), str(folder / scheduler), own, max_concurrent=1)
        found[scheduler] = own, outcome
    return found


def best_score(outcome: SweepOutcome) -> float:
    assert outcome.best is not None
    return outcome.best.score(outcome.metric) or 0.0


@pytest.mark.timeout(1800)
def test_twelve_trials_do_at_least_as_well_as_the_default(
    sweeps: dict[str, tuple[SweepJob, SweepOutcome]],
) -> None:
    for _, outcome in sweeps.values():
        assert len(outcome.trials) == 12
        assert outcome.trials[0].assignment == {}
        assert best_score(outcome) >= (outcome.trials[0].score(outcome.metric) or 0.0)
        assert Path(outcome.sweep.best.bundle_uri, "model.json").exists()


def test_asha_spends_at_most_three_fifths_of_the_epochs(
    sweeps: dict[str, tuple[SweepJob, SweepOutcome]],
) -> None:
    spent = {
        name: sum(len(trial.history) for trial in outcome.trials)
        for name, (_, outcome) in sweeps.items()
    }
    assert spent["none"] == 12 * SETTINGS["train"]["epochs"]
    assert spent["asha"] <= 0.6 * spent["none"]


def test_asha_finds_as_good_a_model(
    sweeps: dict[str, tuple[SweepJob, SweepOutcome]],
) -> None:
    (_, stopped), (_, whole) = sweeps["asha"], sweeps["none"]
    assert [t.assignment for t in stopped.trials] == [t.assignment for t in whole.trials]
    assert best_score(stopped) >= best_score(whole) - 0.01
    for early, late in zip(stopped.trials, whole.trials, strict=True):
        shared = [record["val_loss"] for record in late.history[: len(early.history)]]
        assert [record["val_loss"] for record in early.history] == pytest.approx(shared, rel=1e-4)
