"""Recipes from TOML: defaults, overrides, and the part that training depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fetal_core.config import parse
from fetal_core.errors import ConfigError, StorageError
from fetal_core.fit_config import FitConfig
from fetal_core.recipe import Recipe, load_recipe

TOML = """
[preprocess]
size_px = 128
[optim]
name = "adam"
lr = 0.001
[train]
epochs = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    return path


def test_tables_fill_the_recipe_and_the_rest_is_default(file: Path) -> None:
    recipe = load_recipe(str(file))
    assert (recipe.preprocess.size_px, recipe.optim.name, recipe.train.epochs) == (128, "adam", 3)
    assert recipe.split == Recipe().split
    assert recipe.train.batch_size == Recipe().train.batch_size


def test_overrides_win_leaf_by_leaf(file: Path) -> None:
    recipe = load_recipe(str(file), {"optim": {"lr": 0.5}, "train": {"seed": 7}})
    assert (recipe.optim.name, recipe.optim.lr) == ("adam", 0.5)
    assert (recipe.train.epochs, recipe.train.seed) == (3, 7)


def test_all_faults_of_a_file_come_together(file: Path) -> None:
    file.write_text('[train]\nepoch = 3\nbatch_size = 0\n[optim]\nname = "lion"\n[modell]\n')
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file))
    message = str(caught.value)
    assert str(file) in message
    for part in ("did you mean 'epochs'", "batch_size", "'lion'", "did you mean 'model'"):
        assert part in message
    assert message.count("\n  - ") == 4


def test_fit_config_is_the_training_part(file: Path) -> None:
    recipe = load_recipe(str(file))
    fit = recipe.fit_config()
    assert type(fit) is FitConfig
    assert fit.model_dump() == {
        name: value for name, value in recipe.model_dump().items() if name in FitConfig.model_fields
    }
    other = load_recipe(str(file), {"split": {"seed": 3}})
    assert other.fit_config().digest() == fit.digest()
    assert other.digest() != recipe.digest()


def test_a_recipe_survives_json(file: Path) -> None:
    recipe = load_recipe(str(file), {"labels": {"classes": ["a", "b"]}, "loss": {}})
    text = json.dumps(recipe.model_dump(mode="json"))
    assert parse(Recipe, json.loads(text), "json") == recipe


def test_lbfgs_goes_with_probing_only(file: Path) -> None:
    probe = {"optim": {"name": "lbfgs"}, "train": {"mode": "probe"}}
    assert load_recipe(str(file), probe).optim.name == "lbfgs"
    with pytest.raises(ConfigError, match="only for probe"):
        load_recipe(str(file), {"optim": {"name": "lbfgs"}})


def test_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.toml"):
        load_recipe(str(tmp_path / "none.toml"))
