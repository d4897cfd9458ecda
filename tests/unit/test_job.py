"""Named and saved configurations of jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fetal_core.errors import ConfigError, StorageError
from fetal_core.recipe import Recipe
from ray_jobs.job import Job, load_job, load_saved, named_configs, read_config

RUNS = [name for name in named_configs() if "search" not in read_config(name)]


@pytest.mark.parametrize("name", RUNS)
def test_every_named_configuration_is_valid_and_differs_from_the_default(name: str) -> None:
    assert load_job(name).recipe().digest() != Recipe().digest()


def test_the_original_recipe_is_the_authors() -> None:
    job = load_job("original")
    assert (job.model.architecture, job.model.weights) == ("resnet50", "imagenet")
    assert (job.preprocess.size_px, job.preprocess.fit) == (661, "squash")
    assert job.model.normalise == "dataset"
    assert (job.optim.name, job.optim.lr, job.optim.momentum) == ("sgd", 0.01, 0.9)
    assert job.loss.name == "cross_entropy"
    assert (job.schedule.name, job.schedule.factor, job.schedule.patience) == ("plateau", 0.2, 3)
    assert (job.schedule.step_epochs, job.schedule.step_gamma) == (2, 0.8)
    assert (job.train.batch_size, job.train.epochs) == (8, 10)
    assert len(job.labels.classes or ()) == 4
    for augmentation in ("horizontal_flip", "vertical_flip", "rotation_deg", "crop"):
        assert getattr(job.augment, augmentation) > 0


def test_the_compared_architecture_changes_nothing_else() -> None:
    original, compared = load_job("original").model_dump(), load_job("vgg19").model_dump()
    assert compared["model"].pop("architecture") == "vgg19"
    assert original["model"].pop("architecture") == "resnet50"
    assert compared == original


def test_unknown_name_gives_the_nearest_and_all_names() -> None:
    with pytest.raises(ConfigError) as caught:
        load_job("orignal")
    assert "did you mean 'original'? Known: " in str(caught.value)
    for name in named_configs():
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match=r"of this name\. Known: "):
        load_job("qqqq")


def test_a_configuration_of_a_sweep_says_which_command_takes_it() -> None:
    with pytest.raises(ConfigError, match=r"--config sweep: describes a sweep.*fetal tune"):
        load_job("sweep")


def test_toml_files_are_read_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[cluster]\nworkers = 3\n[train]\nepochs = 2\n")
    job = load_job(str(file))
    assert (job.cluster.workers, job.train.epochs) == (3, 2)
    file.write_text("[cluster]\nworker = 3\n")
    with pytest.raises(ConfigError, match="did you mean 'workers'"):
        load_job(str(file))
    with pytest.raises(StorageError, match="no such file"):
        load_job(str(tmp_path / "none.toml"))


def test_the_cluster_does_not_determine_the_numbers_of_a_run() -> None:
    job, wide = Job(), Job.model_validate({"cluster": {"workers": 8}})
    assert type(job.recipe()) is Recipe
    assert wide.recipe().digest() == job.recipe().digest() == Recipe().digest()


def test_saved_recipe_and_saved_job_are_read_back(tmp_path: Path) -> None:
    job = Job.model_validate({"cluster": {"workers": 2}, "train": {"epochs": 4}})
    for saved in (job, job.recipe()):
        file = tmp_path / "recipe.json"
        file.write_text(json.dumps(saved.model_dump(mode="json")))
        assert load_saved(str(file)).recipe() == job.recipe()


@pytest.mark.parametrize("text", ["[]", "3", '{"train": {"epochs": "many"}}'])
def test_saved_settings_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.json"):
        load_saved(str(file))
