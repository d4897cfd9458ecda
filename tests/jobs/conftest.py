"""One local Ray cluster and one small synthetic cohort for all tests of the jobs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Ray reads these when it is imported.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# What tests wait for must not stand back behind the tests.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "120")

import pytest
import ray
import ray.data

from cohorts import recipe, write_textures
from fetal_core.bundle import read_info, write_info
from fetal_core.phantom import PhantomConfig, write_cohort
from fetal_core.recipe import Recipe
from fetal_core.registry import Registry
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.prepare import PrepareOutcome, prepare
from ray_jobs.train import TrainOutcome, train

OBJECT_STORE_BYTES = 200 * 2**20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the cluster run with those that start Ray."""
    for item in items:
        if isinstance(item, pytest.Function) and "cluster" in item.fixturenames:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray on this machine; the jobs join it instead of starting their own."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty synthetic images of sixteen patients."""
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    write_cohort(PhantomConfig(images=60, patients=16, seed=3), folder)
    return folder


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """A faultless folder of ten small images, to be spoilt."""
    return write_textures(tmp_path / "data")


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """A few epochs at 32 px in which everything random takes part."""
    return recipe(
        train={"epochs": 5, "batch_size": 8, "ema_decay": 0.5, "mixup_alpha": 0.2},
        model={"architecture": "resnet18", "dropout": 0.2},
        schedule={"name": "cosine", "warmup_epochs": 1},
    )


@pytest.fixture(scope="session")
def prepared(
    cluster: None, cohort: Path, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> PrepareOutcome:
    """The synthetic cohort as shards of 32 px."""
    return prepare(str(cohort), str(tmp_path_factory.mktemp("prepared") / "out"), small_recipe)


@pytest.fixture(scope="session")
def trained(
    prepared: PrepareOutcome, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> TrainOutcome:
    """An uninterrupted run of ``small_recipe`` with one worker."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return train(prepared.prepared.uri, str(run), small_recipe, ClusterConfig(), lambda _: None)


@pytest.fixture(scope="module")
def registry(trained: TrainOutcome, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Two versions of a model, of which the second is less sure of itself; the first serves."""
    folder = tmp_path_factory.mktemp("registry")
    found = Registry(str(folder / "registry"))
    found.register(trained.run.bundle_uri, "planes")
    second = folder / "second"
    shutil.copytree(trained.run.bundle_uri, second)
    write_info(str(second), read_info(str(second)).model_copy(update={"temperature": 4.0}))
    found.register(str(second), "planes")
    found.promote("planes", 1, "champion")
    return found
