"""Folders of cohorts and runs: what belongs together, and refusal of what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from builders import manifest_of, toy_bundle, write_prepared
from data_samples import encode, texture
from fetal_core.config import merge, parse
from fetal_core.errors import ConfigError, StaleInputError, StorageError
from fetal_core.recipe import Recipe
from fetal_core.split import make_split
from ray_jobs.workspace import Prepared, Run


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Prepared, Recipe]:
    return write_prepared(tmp_path)


def with_checkpoint(folder: Path) -> Run:
    """A run that has come as far as its first checkpoint."""
    run = Run(str(folder))
    Path(run.uri, "checkpoints").mkdir(parents=True)
    Path(run.uri, "checkpoints", "checkpoint_manager_snapshot.json").write_text("{}")
    return run


def changed(recipe: Recipe, **tables: dict[str, object]) -> Recipe:
    return parse(Recipe, merge(recipe.model_dump(), tables), "test")


def test_a_prepared_cohort_is_read_whole(cohort: tuple[Prepared, Recipe]) -> None:
    manifest, split, index = cohort[0].load()
    assert len(manifest) == 24
    assert {part: index.rows(part) for part in split.parts} == {
        part: len(ids) for part, ids in split.parts.items()
    }
    assert index.classes == manifest.classes == ("Fetal brain", "Fetal femur")


def test_a_folder_that_was_not_prepared_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Run `fetal prepare` first"):
        Prepared(str(tmp_path)).load()


def test_interrupted_preparation_says_what_to_run(cohort: tuple[Prepared, Recipe]) -> None:
    prepared, _ = cohort
    Path(prepared.shards_uri, "index.json").unlink()
    with pytest.raises(StorageError, match="no finished shards here"):
        prepared.load()


def test_shards_of_another_split_are_stale(cohort: tuple[Prepared, Recipe]) -> None:
    prepared, recipe = cohort
    manifest, _, _ = prepared.load()
    other = make_split(manifest, recipe.split.model_copy(update={"seed": 1}))
    other.save(prepared.split_uri)
    with pytest.raises(StaleInputError, match="made from another manifest or split"):
        prepared.load()


def test_shards_of_other_images_are_stale(cohort: tuple[Prepared, Recipe], tmp_path: Path) -> None:
    prepared, _ = cohort
    next((tmp_path / "cohort" / "images").iterdir()).write_bytes(encode(texture(500)))
    manifest_of(tmp_path / "cohort").save(prepared.manifest_uri)
    with pytest.raises(StaleInputError, match="made from another manifest or split"):
        prepared.load()


def test_split_edited_by_hand_is_refused(cohort: tuple[Prepared, Recipe]) -> None:
    prepared, _ = cohort
    values = json.loads(Path(prepared.split_uri).read_text())
    values["parts"]["train"].append(values["parts"]["test"].pop())
    Path(prepared.split_uri).write_text(json.dumps(values))
    with pytest.raises(StaleInputError, match="changed after it was saved"):
        prepared.load()


def test_a_run_remembers_its_cohort_and_recipe(
    cohort: tuple[Prepared, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, recipe = cohort
    monkeypatch.chdir(tmp_path)
    run = Run(str(tmp_path / "runs" / "first"))
    run.begin(Prepared("prepared"), recipe, "fingerprint")
    found, same = run.inputs()
    assert found.uri == prepared.uri
    assert same == recipe
    assert run.name == "first"


def test_the_same_settings_resume_a_run(cohort: tuple[Prepared, Recipe], tmp_path: Path) -> None:
    prepared, recipe = cohort
    recipe = changed(recipe, labels={"classes": ["Fetal brain"]}, loss={"class_weights": [1.0]})
    run = with_checkpoint(tmp_path / "run")
    for _ in range(2):
        run.begin(prepared, recipe, "fingerprint")
    assert run.inputs()[1] == recipe


def test_resuming_with_other_settings_lists_every_difference(
    cohort: tuple[Prepared, Recipe], tmp_path: Path
) -> None:
    prepared, recipe = cohort
    run = with_checkpoint(tmp_path / "run")
    run.begin(prepared, recipe, "fingerprint")
    other = changed(recipe, train={"epochs": 99, "seed": 5}, optim={"lr": 0.5})
    with pytest.raises(ConfigError) as caught:
        run.begin(prepared, other, "fingerprint")
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        f"  - optim.lr: {recipe.optim.lr} -> 0.5",
        f"  - train.epochs: {recipe.train.epochs} -> 99",
        "  - train.seed: 0 -> 5",
    ]
    assert "--name" in str(caught.value)
    assert run.inputs()[1] == recipe


def test_resuming_on_other_shards_is_refused(
    cohort: tuple[Prepared, Recipe], tmp_path: Path
) -> None:
    prepared, recipe = cohort
    run = with_checkpoint(tmp_path / "run")
    run.begin(prepared, recipe, "one")
    with pytest.raises(StaleInputError, match="shards have changed since this run began"):
        run.begin(prepared, recipe, "two")


def test_a_run_that_failed_before_its_first_checkpoint_may_start_with_other_settings(
    cohort: tuple[Prepared, Recipe], tmp_path: Path
) -> None:
    prepared, recipe = cohort
    run = Run(str(tmp_path / "run"))
    run.begin(prepared, recipe, "one")
    other = changed(recipe, train={"epochs": 99})
    run.begin(prepared, other, "two")
    assert run.inputs()[1] == other


def test_a_trained_run_keeps_its_settings_even_without_its_checkpoints(
    cohort: tuple[Prepared, Recipe], tmp_path: Path
) -> None:
    prepared, recipe = cohort
    run = Run(str(tmp_path / "run"))
    run.begin(prepared, recipe, "fingerprint")
    toy_bundle().save(run.bundle_uri)
    assert run.is_trained
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        run.begin(prepared, changed(recipe, train={"epochs": 99}), "fingerprint")


def test_settings_that_decide_the_shards_must_be_those_of_the_cohort(
    cohort: tuple[Prepared, Recipe],
) -> None:
    prepared, recipe = cohort
    Path(prepared.recipe_uri).write_text(json.dumps(recipe.model_dump(mode="json")))
    prepared.check_made_for(changed(recipe, train={"epochs": 99}, optim={"lr": 1}))
    with pytest.raises(ConfigError) as caught:
        prepared.check_made_for(
            changed(recipe, preprocess={"size_px": 64}, split={"seed": 3}, train={"epochs": 99})
        )
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        "  - preprocess.size_px: prepared with 32, asked for 64",
        "  - split.seed: prepared with 0, asked for 3",
    ]


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a run"):
        Run(str(tmp_path)).inputs()


def with_other_code(run: Run, **changes: str) -> Run:
    info = json.loads(Path(run.info_uri).read_text())
    info["code"] |= changes
    Path(run.info_uri).write_text(json.dumps(info))
    return run


def test_resuming_with_other_code_names_what_has_changed(
    cohort: tuple[Prepared, Recipe], tmp_path: Path
) -> None:
    prepared, recipe = cohort
    run = with_checkpoint(tmp_path / "run")
    run.begin(prepared, recipe, "fingerprint")
    with_other_code(run, **{"fetal_core/steps.py": "0123", "torch": "2.0"})
    with pytest.raises(StaleInputError) as caught:
        run.begin(prepared, recipe, "fingerprint")
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == ["  - fetal_core/steps.py: changed", f"  - torch: 2.0 -> {torch.__version__}"]
    assert "--force" in str(caught.value)


def test_a_forced_run_goes_on_and_keeps_a_record_of_it(
    cohort: tuple[Prepared, Recipe], tmp_path: Path
) -> None:
    prepared, recipe = cohort
    run = with_checkpoint(tmp_path / "run")
    run.begin(prepared, recipe, "fingerprint")
    with_other_code(run, torch="2.0")
    other = changed(recipe, train={"epochs": 99})
    differences = [
        "the shards have changed",
        f"train.epochs: {recipe.train.epochs} -> 99",
        f"torch: 2.0 -> {torch.__version__}",
    ]
    assert run.begin(prepared, other, "another", force=True, check_only=True) == differences
    assert run.inputs()[1] == recipe
    assert run.begin(prepared, other, "another", force=True) == differences
    (record,) = json.loads(Path(run.info_uri).read_text())["forced"]
    assert record["differences"] == differences
    # From now on these are the run's own, and what was forced stays on record.
    assert run.begin(prepared, other, "another") == []
    assert json.loads(Path(run.info_uri).read_text())["forced"] == [record]
    assert run.inputs()[1] == other


def test_a_checkpoint_is_not_forced_into_another_network(
    cohort: tuple[Prepared, Recipe], tmp_path: Path
) -> None:
    prepared, recipe = cohort
    run = with_checkpoint(tmp_path / "run")
    run.begin(prepared, recipe, "fingerprint")
    other = changed(recipe, model={"architecture": "resnet18"}, train={"epochs": 99})
    with pytest.raises(ConfigError) as caught:
        run.begin(prepared, other, "fingerprint", force=True)
    assert "model.architecture: 'squeezenet1_1' -> 'resnet18'" in str(caught.value)
    assert "train.epochs" not in str(caught.value)
    assert run.inputs()[1] == recipe


def test_the_interval_of_checkpoints_may_change(
    cohort: tuple[Prepared, Recipe], tmp_path: Path
) -> None:
    prepared, recipe = cohort
    run = with_checkpoint(tmp_path / "run")
    run.begin(prepared, recipe, "fingerprint")
    other = changed(recipe, train={"checkpoint_steps": 50})
    assert run.begin(prepared, other, "fingerprint") == []
    assert run.inputs()[1] == other


def test_a_finished_run_is_not_forced(cohort: tuple[Prepared, Recipe], tmp_path: Path) -> None:
    prepared, recipe = cohort
    run = Run(str(tmp_path / "run"))
    run.begin(prepared, recipe, "fingerprint")
    toy_bundle().save(run.bundle_uri)
    with_other_code(run, torch="2.0")
    assert run.begin(prepared, recipe, "fingerprint") == []
    with pytest.raises(ConfigError, match="choose a new --name") as caught:
        run.begin(prepared, changed(recipe, train={"epochs": 99}), "fingerprint", force=True)
    assert "--force" not in str(caught.value)


def test_checkpoints_that_nothing_names_are_removed(tmp_path: Path) -> None:
    run = with_checkpoint(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for name in ("checkpoint_1", "checkpoint_2"):
        (folder / name).mkdir()
        (folder / name / "model").write_text("weights")
    snapshot = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    (folder / "other").write_text("not Ray's")
    run.remove_leftovers()
    left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert left == {"checkpoint_1/model", "checkpoint_manager_snapshot.json", "other"}


def test_a_run_without_any_checkpoint_has_no_leftovers_to_mind(tmp_path: Path) -> None:
    Run(str(tmp_path / "run")).remove_leftovers()
