"""A job's whole configuration: the recipe and how it uses the cluster; named TOML files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from fetal_core import storage
from fetal_core.config import nearest, parse, read_toml
from fetal_core.errors import ConfigError, StorageError
from fetal_core.model import NAMED_WEIGHTS, ModelConfig
from fetal_core.recipe import Recipe
from ray_jobs.cluster_config import ClusterConfig


class Job(Recipe):
    """A recipe and the resources to run it with."""

    cluster: ClusterConfig = ClusterConfig()

    def recipe(self) -> Recipe:
        """What determines the numbers of the run; a weights file by its absolute path.

        Workers have working directories of their own.
        """
        recipe = Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})
        if recipe.model.weights in NAMED_WEIGHTS:
            return recipe
        model = recipe.model.model_copy(update={"weights": storage.absolute(recipe.model.weights)})
        return recipe.model_copy(update={"model": model})


def check_weights(config: ModelConfig) -> None:
    """Refuse a weights file that is not there before workers are started.

    Raises:
        StorageError: no such file.
    """
    if config.weights not in NAMED_WEIGHTS and not storage.is_file(config.weights):
        raise StorageError(
            f"model.weights: {config.weights}: no such file. "
            'Give a .pth or .safetensors file, or "imagenet" or "none".'
        )


def named_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    files = resources.files("ray_jobs").joinpath("configs").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_job(config: str) -> Job:
    """A job from a TOML file, or from a configuration that comes with the package.

    Raises:
        ConfigError: no such name, or the file is not valid; all faults together.
        StorageError: the file cannot be read.
    """
    tables = read_config(config)
    if "search" in tables:
        raise ConfigError(f"--config {config}: describes a sweep. Run it with `fetal tune`.")
    return _parse(tables, config)


def read_config(config: str) -> dict[str, Any]:
    """The tables of a TOML file, or of a configuration that comes with the package.

    Args:
        config: a name such as ``original``, or the path or URI of a ``.toml`` file.

    Raises:
        ConfigError: no such name, or not TOML.
        StorageError: the file cannot be read.
    """
    if config.endswith(".toml"):
        return read_toml(config)
    names = named_configs()
    if config not in names:
        raise ConfigError(
            f"--config {config}: no configuration of this name{nearest(config, names) or '.'} "
            f"Known: {', '.join(names)}; or give the path of a .toml file."
        )
    return read_toml(str(resources.files("ray_jobs").joinpath("configs", f"{config}.toml")))


def load_saved(uri: str) -> Job:
    """The job that a prepared cohort or a run was made with."""
    return _parse(storage.read_json(uri), uri)


def _parse(values: Mapping[str, Any], where: str) -> Job:
    return parse(Job, values, where)
