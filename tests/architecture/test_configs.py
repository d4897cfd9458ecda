"""The named configurations, and the original recipe's numbers."""

from __future__ import annotations

import pytest

from fetal_core.search_check import check_search
from fetal_core.study_config import check_study
from ray_jobs.job import load_job, named_configs, read_config
from ray_jobs.tune import load_sweep

SWEEPS = [name for name in named_configs() if "search" in read_config(name)]
RUNS = [name for name in named_configs() if name not in SWEEPS]


def test_all_named_configurations_are_there() -> None:
    assert {"demo", "original", "scaled", "vgg19", "probe"} <= set(RUNS)
    assert {"demo-sweep", "sweep", "hypotheses"} <= set(SWEEPS)


@pytest.mark.parametrize("name", SWEEPS)
def test_named_sweep_is_valid_and_leaves_the_cohort_as_it_is(name: str) -> None:
    assert not {"labels", "limits", "split", "preprocess"} & set(read_config(name))
    job = load_sweep(name, None)
    check_search(job.search, job.recipe())
    check_study(job.study, job.search)


@pytest.mark.parametrize("name", RUNS)
def test_named_configuration_is_valid(name: str) -> None:
    job = load_job(name)
    assert job.train.epochs >= 1
    assert type(job).model_validate(job.model_dump(mode="json")) == job


@pytest.mark.parametrize(("name", "architecture"), [("original", "resnet50"), ("vgg19", "vgg19")])
def test_original_recipe(name: str, architecture: str) -> None:
    job = load_job(name)
    assert (job.model.architecture, job.model.weights) == (architecture, "imagenet")
    assert (job.preprocess.size_px, job.preprocess.fit) == (661, "squash")
    assert job.model.normalise == "dataset"
    assert (job.optim.name, job.optim.lr, job.optim.momentum) == ("sgd", 0.01, 0.9)
    schedule = job.schedule
    assert (schedule.name, schedule.factor, schedule.patience) == ("plateau", 0.2, 3)
    assert (schedule.step_epochs, schedule.step_gamma) == (2, 0.8)
    assert (job.train.epochs, job.train.batch_size) == (10, 8)
    assert job.loss.name == "cross_entropy"


def test_vgg19_differs_from_the_original_in_the_architecture_only() -> None:
    original, vgg19 = load_job("original"), load_job("vgg19")
    model = original.model.model_copy(update={"architecture": "vgg19"})
    assert original.model_copy(update={"model": model}) == vgg19
