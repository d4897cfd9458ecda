"""Training through Ray Train: what it leaves behind, on any number of ranks, after any stop."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cohorts import flags, interrupt_when, kill_when, recipe, run
from fetal_core.bundle import Bundle
from fetal_core.errors import ConfigError, ModelError
from fetal_core.recipe import Recipe
from fetal_core.runlog import read_history
from ray_jobs.cluster import ResourceError
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.prepare import PrepareOutcome
from ray_jobs.train import TrainOutcome, train

pytestmark = pytest.mark.ray

TIMINGS = {"train_s", "epoch_s", "images_per_s"}


def history(run_uri: str) -> list[dict[str, Any]]:
    """Records of the epochs without what the clock decides."""
    return [
        {key: value for key, value in record.items() if key not in TIMINGS}
        for record in read_history(run_uri)
    ]


def test_a_run_leaves_one_record_an_epoch(trained: TrainOutcome, small_recipe: Recipe) -> None:
    records = history(trained.run.uri)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]
    assert trained.epochs == small_recipe.train.epochs
    select = small_recipe.train.select_by
    best = max(records, key=lambda record: record[select])
    assert trained.best["epoch"] == best["epoch"]


def test_tensorboard_shows_the_same_numbers(trained: TrainOutcome) -> None:
    board = EventAccumulator(f"{trained.run.uri}/tensorboard")
    board.Reload()
    records = history(trained.run.uri)
    for key in ("train_loss", "val_loss", "val_accuracy", "lr"):
        points = board.Scalars(key)
        assert [point.step for point in points] == [record["epoch"] for record in records]
        expected = [record[key] for record in records]
        assert [point.value for point in points] == pytest.approx(expected, rel=1e-6)


def test_the_bundle_is_the_best_epoch(
    trained: TrainOutcome, prepared: PrepareOutcome, small_recipe: Recipe
) -> None:
    info = Bundle.load(trained.run.bundle_uri).info
    assert info.metrics["validation"] == trained.best
    assert info.classes == prepared.index.classes
    assert info.preprocess == small_recipe.preprocess
    assert info.mean == (prepared.index.mean,)
    assert info.hashes["shards"] == prepared.index.fingerprint
    assert Recipe(**info.recipe) == small_recipe


def test_one_rank_and_two_give_the_same_losses(prepared: PrepareOutcome, tmp_path: Path) -> None:
    # Micro-batches are the same on any number of ranks where they can be dealt out evenly.
    assert prepared.index.rows("train") % 6 == 0
    settings = recipe(
        train={"epochs": 3, "batch_size": 6, "micro_batch": 3, "mixup_alpha": 0.2},
        model={"architecture": "squeezenet1_1", "dropout": 0.2},
        optim={"lr": 0.01},
    )
    curves = {}
    for ranks in (1, 2):
        done = train(
            prepared.prepared.uri,
            str(tmp_path / f"ranks{ranks}"),
            settings,
            ClusterConfig(workers=ranks),
            lambda _: None,
        )
        curves[ranks] = history(done.run.uri)
    for key in ("train_loss", "val_loss"):
        one, two = ([record[key] for record in curves[ranks]] for ranks in (1, 2))
        assert len(set(one)) == 3
        assert two == pytest.approx(one, rel=1e-3)


def test_a_damaged_shard_is_told_by_its_place(
    prepared: PrepareOutcome, small_recipe: Recipe, tmp_path: Path
) -> None:
    """Of the size that the index tells, so that only who reads it finds out."""
    shutil.copytree(prepared.prepared.uri, tmp_path / "damaged")
    shard = tmp_path / "damaged/shards/train/00000.parquet"
    data = shard.read_bytes()
    third = len(data) // 3
    shard.write_bytes(data[:third] + bytes(third) + data[2 * third :])
    runs = str(tmp_path / "runs")
    flagged = flags(small_recipe)
    code, output = run("train", str(tmp_path / "damaged"), "--runs", runs, *flagged, cwd=tmp_path)
    assert code == 2, output
    where = f"error: {shard.parent}: cannot be read"
    assert output.count(where) == 1
    assert output.endswith("Run `fetal prepare` again.\n"), output


@pytest.mark.timeout(900)
def test_a_killed_run_resumes_to_the_same_numbers(
    trained: TrainOutcome, prepared: PrepareOutcome, small_recipe: Recipe, tmp_path: Path
) -> None:
    command = ("train", prepared.prepared.uri, *flags(small_recipe))
    snapshot = tmp_path / "runs/run/checkpoints/checkpoint_manager_snapshot.json"
    kill_when(
        lambda: snapshot.exists() and bool(history(str(tmp_path / "runs/run"))),
        *command,
        cwd=tmp_path,
    )
    assert 1 <= len(history(str(tmp_path / "runs/run"))) < small_recipe.train.epochs
    assert not (tmp_path / "runs/run/bundle").exists()

    code, output = run(*command, cwd=tmp_path)
    assert code == 0, output
    assert "resuming after epoch" in output
    assert history(str(tmp_path / "runs/run")) == history(trained.run.uri)
    resumed = Bundle.load(str(tmp_path / "runs/run/bundle")).model.state_dict()
    for key, value in Bundle.load(trained.run.bundle_uri).model.state_dict().items():
        assert value.equal(resumed[key]), key


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped")],
)
def test_a_signal_to_all_its_processes_ends_training_in_order(
    prepared: PrepareOutcome,
    small_recipe: Recipe,
    tmp_path: Path,
    number: int,
    code: int,
    told: str,
) -> None:
    long = small_recipe.train.model_copy(update={"epochs": 500})
    settings = small_recipe.model_copy(update={"train": long})
    command = ("train", prepared.prepared.uri, *flags(settings))
    run_uri = str(tmp_path / "runs/run")
    found, output = interrupt_when(
        lambda: bool(history(run_uri)), *command, cwd=tmp_path, number=number
    )
    assert found == code, output
    assert f"{told}; run the same command again to continue" in output
    assert "Traceback" not in output
    assert "SIGTERM received" not in output


def test_a_finished_run_stays_as_it_is(
    trained: TrainOutcome, prepared: PrepareOutcome, small_recipe: Recipe
) -> None:
    before = Path(trained.run.uri, "metrics.jsonl").read_bytes()
    again = train(
        prepared.prepared.uri, trained.run.uri, small_recipe, ClusterConfig(), lambda _: None
    )
    assert (again.best, again.epochs) == (trained.best, trained.epochs)
    assert Path(trained.run.uri, "metrics.jsonl").read_bytes() == before


def test_another_configuration_needs_another_name(
    trained: TrainOutcome, prepared: PrepareOutcome, small_recipe: Recipe
) -> None:
    changed = small_recipe.model_copy(
        update={"optim": small_recipe.optim.model_copy(update={"lr": 0.5})}
    )
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.02 -> 0\.5"):
        train(prepared.prepared.uri, trained.run.uri, changed, ClusterConfig(), lambda _: None)


def test_other_images_than_prepared_are_refused(prepared: PrepareOutcome, tmp_path: Path) -> None:
    settings = recipe(preprocess={"size_px": 64}, split={"seed": 5})
    with pytest.raises(ConfigError) as caught:
        train(prepared.prepared.uri, str(tmp_path / "x"), settings, ClusterConfig(), print)
    assert "preprocess.size_px: prepared with 32, asked for 64" in str(caught.value)
    assert "split.seed: prepared with 0, asked for 5" in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_too_many_workers_are_refused_at_once(
    prepared: PrepareOutcome, small_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match="8 workers"):
        train(
            prepared.prepared.uri,
            str(tmp_path / "x"),
            small_recipe,
            ClusterConfig(workers=8),
            lambda _: None,
        )


def test_a_fault_inside_a_worker_arrives_as_the_users_error(
    prepared: PrepareOutcome, tmp_path: Path
) -> None:
    (tmp_path / "weights.pth").write_text("not a state dict")
    settings = recipe(model={"weights": str(tmp_path / "weights.pth")})
    with pytest.raises(ModelError, match=r"weights\.pth"):
        train(prepared.prepared.uri, str(tmp_path / "x"), settings, ClusterConfig(), print)
