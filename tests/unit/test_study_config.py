"""Hypotheses about arms: what is refused, and the project's own study."""

from __future__ import annotations

from importlib import resources

import pytest

from fetal_core.config import parse, read_toml
from fetal_core.errors import ConfigError
from fetal_core.recipe import Recipe
from fetal_core.search import SearchConfig, candidates
from fetal_core.search_check import check_search
from fetal_core.study_config import Hypothesis, StudyConfig, check_study
from ray_jobs.job import load_job
from study_samples import (
    SEARCH,
    STUDY,
)


def test_unknown_arms_are_named_with_the_nearest() -> None:
    study = StudyConfig(
        hypotheses=(
            Hypothesis(claim="One.", arm="dep", other="wide"),
            Hypothesis(claim="Two.", arm="deep", other="deep"),
        )
    )
    with pytest.raises(ConfigError) as caught:
        check_study(study, SEARCH)
    message = str(caught.value)
    assert "hypotheses.0.arm: no arm 'dep'; did you mean 'deep'? Known: deep, wide" in message
    assert "hypotheses.1: compares the arm 'deep' with itself" in message
    with pytest.raises(ConfigError, match="The search has none"):
        check_study(STUDY, SearchConfig())
    check_study(STUDY, SEARCH)


def own_study() -> tuple[Recipe, SearchConfig, StudyConfig, set[str]]:
    values = read_toml(str(resources.files("ray_jobs").joinpath("configs", "hypotheses.toml")))
    search = parse(SearchConfig, values.pop("search"), "search")
    study = parse(StudyConfig, values.pop("study"), "study")
    return parse(Recipe, values, "hypotheses.toml"), search, study, set(values)


def test_the_projects_own_study_is_valid() -> None:
    recipe, search, study, _ = own_study()
    check_search(search, recipe)
    check_study(study, search)
    found = candidates(search, recipe)
    assert len(found) == 4 * 3 * 3
    assert {one.arm for one in found} == set(search.arms)
    assert len(study.hypotheses) == 4
    for one in study.hypotheses:
        settings = [search.arms[name].settings for name in (one.arm, one.other)]
        assert sorted(map(len, settings)) == [0, 1]  # the recipe, and it with one change


def test_the_projects_own_study_is_the_original_recipe_on_any_cohort() -> None:
    recipe, _, _, tables = own_study()
    original = load_job("original").recipe().fit_config()
    train = original.train.model_copy(update={"max_val_images": recipe.train.max_val_images})
    assert recipe.fit_config() == original.model_copy(update={"train": train})
    assert not tables & {"labels", "split", "preprocess", "limits"}
