"""The whole configuration of a run, from the label table to the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fetal_core.calibrate import CalibrateConfig
from fetal_core.config import merge, parse, read_toml
from fetal_core.evaluate import EvaluateConfig
from fetal_core.fit_config import FitConfig
from fetal_core.images import ImageLimits
from fetal_core.labels import LabelsConfig
from fetal_core.preprocess import PreprocessConfig
from fetal_core.split import SplitConfig


class Recipe(FitConfig):
    """All settings that determine the numbers of a run; a TOML file has a table for each."""

    labels: LabelsConfig = LabelsConfig()
    limits: ImageLimits = ImageLimits()
    split: SplitConfig = SplitConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def fit_config(self) -> FitConfig:
        """The part of the recipe that training depends on."""
        return FitConfig(**{name: getattr(self, name) for name in FitConfig.model_fields})


def load_recipe(uri: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe from TOML.

    Raises:
        StorageError: the file cannot be read.
        ConfigError: it is not valid; all faults together.
    """
    return parse(Recipe, merge(read_toml(uri), overrides or {}), uri)
