"""Checkpoints on disk: round trip, damage, replacement of old ones."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from builders import (
    SIZE_PX,
    comparable,
    disk_of,
    disk_refuses_files_over,
    fit_config,
    kept,
    toy_data,
)
from fetal_core import storage
from fetal_core.checkpoint import (
    TRAINER,
    WEIGHTS,
    CheckpointStore,
    load_trainer,
    load_weights,
    save_trainer,
    save_weights,
)
from fetal_core.errors import CheckpointError, ModelError, StorageError
from fetal_core.model import ModelConfig, PlaneClassifier, build
from fetal_core.run_context import LocalContext
from fetal_core.train import fit
from ray_jobs.whole_files import WholeFiles


def classifier(seed: int, classes: int = 4, architecture: str = "squeezenet1_1") -> PlaneClassifier:
    config = ModelConfig(architecture=architecture, weights="none")
    return build(config, classes, 0.2, 0.1, seed, SIZE_PX)


def test_weights_round_trip_whatever_the_memory_format(tmp_path: Path) -> None:
    source = classifier(0).to(memory_format=torch.channels_last)
    save_weights(tmp_path, source.state_dict())
    target = classifier(1)
    load_weights(tmp_path, target)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    assert list(load_file(tmp_path / WEIGHTS)) == sorted(source.state_dict())


@pytest.mark.parametrize("keep", [0, 6, 1000, 100_000])
def test_damaged_weights_are_a_model_error(tmp_path: Path, keep: int) -> None:
    save_weights(tmp_path, classifier(0).state_dict())
    file = tmp_path / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="do not fit this model"):
        load_weights(tmp_path, classifier(0))


def test_missing_weights_and_weights_of_another_model_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=WEIGHTS):
        load_weights(tmp_path, classifier(0))
    save_weights(tmp_path, classifier(0).state_dict())
    for other in (classifier(0, classes=6), classifier(0, architecture="shufflenet_v2_x0_5")):
        with pytest.raises(ModelError, match="do not fit this model"):
            load_weights(tmp_path, other)


def test_trainer_state_round_trip(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "progress": {"history": [{"val_loss": 0.5}]}}
    save_trainer(tmp_path, state)
    found = load_trainer(tmp_path)
    assert found["progress"] == state["progress"]
    moments = found["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(moments, optimizer.state_dict()["state"][0]["exp_avg"])


class Harmful:
    """Would run code of the file's author when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm"),))


def test_trainer_state_with_code_in_it_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Harmful()}, tmp_path / TRAINER)
    with pytest.raises(ModelError, match="cannot be read"):
        load_trainer(tmp_path)
    (tmp_path / TRAINER).write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(ModelError, match="cannot be read"):
        load_trainer(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_truncated_and_missing_trainer_states_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        load_trainer(tmp_path)
    save_trainer(tmp_path, {"weights": torch.zeros(1000)})
    file = tmp_path / TRAINER
    data = file.read_bytes()
    for keep in (0, 10, len(data) // 2):
        file.write_bytes(data[:keep])
        with pytest.raises(ModelError, match="cannot be read"):
            load_trainer(tmp_path)


def save_text(text: str, folder: Path) -> None:
    (folder / "text").write_text(text)


def test_local_context_keeps_the_latest_and_the_best_checkpoint(tmp_path: Path) -> None:
    context = LocalContext(tmp_path)
    with context.checkpoint() as folder:
        assert folder is None
    for epoch, (text, best) in enumerate((("one", 1.0), ("two", 1.0), ("three", 0.0))):
        record = {"epoch": epoch, "is_best": best}
        context.report(record, lambda folder, text=text: save_text(text, folder))
    with context.checkpoint() as folder:
        assert (folder / "text").read_text() == "three"
    assert (kept(tmp_path, "best") / "text").read_text() == "two"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["epoch-0001", "epoch-0002", "index.json"]


def test_failing_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    context = LocalContext(tmp_path, waits_s=())
    context.report({"epoch": 1, "is_best": 1.0}, lambda folder: save_text("good", folder))

    def fail(folder: Path) -> None:
        save_text("half", folder)
        raise OSError("disk full")

    with pytest.raises(StorageError, match="disk full"):
        context.report({"epoch": 2, "is_best": 1.0}, fail)
    for which in ("latest", "best"):
        folder = kept(tmp_path, which)
        assert (folder / "text").read_text() == "good"
    context.report({"epoch": 2, "is_best": 0.0}, lambda folder: save_text("next", folder))
    assert (kept(tmp_path, "latest") / "text").read_text() == "next"


@pytest.mark.parametrize("save", [save_weights, save_trainer])
def test_a_full_disk_is_a_storage_error_and_leaves_the_old_checkpoint(
    tmp_path: Path, save: Callable[[Path, dict[str, torch.Tensor]], None]
) -> None:
    store = CheckpointStore(str(tmp_path), waits_s=(0.0,))
    store.add("one", lambda folder: save_text("good", folder), True)
    large = {"weight": torch.zeros(1 << 19)}
    with disk_refuses_files_over(1 << 20), pytest.raises(StorageError, match="cannot be written"):
        store.add("two", lambda folder: save(folder, large), True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "one"]
    with store.best() as folder:
        assert (folder / "text").read_text() == "good"


def test_a_checkpoint_is_on_the_disk_before_the_list_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        inside = path.relative_to(tmp_path)
        synced.append("list" if path.suffix == ".tmp" else inside.name)
        assert not (tmp_path / "index.json").exists() or synced[-1] == ""

    monkeypatch.setattr(os, "fsync", note)
    store = CheckpointStore(str(tmp_path))
    store.add("one", lambda folder: save_trainer(folder, {"epoch": 1}), True)
    assert synced == [TRAINER, "one", "", "list", ""]


@pytest.mark.parametrize(("number", "told"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_need_not_flush_but_must_not_fail_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: bool
) -> None:
    def refuse(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().is_dir():
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    store = CheckpointStore(str(tmp_path), waits_s=())
    with pytest.raises(CheckpointError) if told else nullcontext():
        store.add("one", lambda folder: save_text("whole", folder), True)
    assert (store.location("latest") is None) == told


def test_store_keeps_checkpoints_in_s3(bucket: str) -> None:
    store = CheckpointStore(f"{bucket}/run/checkpoints")
    with store.open("latest") as folder:
        assert folder is None
    with pytest.raises(ModelError, match="holds no checkpoint yet"), store.best():
        pass
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    for epoch, best in ((1, True), (2, False), (3, False)):

        def save(folder: Path, epoch: int = epoch) -> None:
            save_weights(folder, {"weight": weights["weight"] * epoch})
            save_trainer(folder, {"epoch": epoch})

        store.add(f"epoch-{epoch:04d}", save, best)
    with store.open("latest") as folder:
        assert load_trainer(folder) == {"epoch": 3}
    with store.best() as folder:
        assert load_trainer(folder) == {"epoch": 1}
        assert load_file(folder / WEIGHTS)["weight"].equal(weights["weight"])
    kept = {storage.name(uri.rsplit("/", 1)[0]) for uri in storage.list_files(store.uri)}
    assert kept == {"checkpoints", "epoch-0001", "epoch-0003"}


def test_a_disk_that_is_full_for_a_moment_costs_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), waits_s=(0.0, 0.0))
    attempts = []

    def save(folder: Path) -> None:
        attempts.append(folder)
        save_text("whole", folder)
        if len(attempts) < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.add("one", save, True)
    assert len(attempts) == 3
    with store.best() as folder:
        assert (folder / "text").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "one"]


def test_a_full_disk_stops_training_with_the_checkpoint_before_it_whole(tmp_path: Path) -> None:
    config = fit_config(train={"epochs": 2, "checkpoint_steps": 1, "batch_size": 6})
    data = toy_data(12, 4)
    expected = fit(config, data, LocalContext(tmp_path / "whole")).history
    checkpoint = kept(tmp_path / "whole", "latest")
    size_bytes = sum(file.stat().st_size for file in checkpoint.iterdir())
    # Room for the best one and the latest, but not for another before the latest is dropped.
    with disk_of(5 * size_bytes // 2, tmp_path / "disk") as (disk, make_room):
        context = LocalContext(disk, waits_s=(0.0, 0.0))
        with pytest.raises(CheckpointError, match="No space left") as caught:
            fit(config, data, context)
        assert "tried 3 times" in str(caught.value)
        assert kept(disk, "latest").name == "epoch-0002-step-000001"
        assert sorted(path.name for path in disk.iterdir() if path.is_dir()) == [
            "epoch-0001",
            "epoch-0002-step-000001",
        ]
        make_room()
        assert comparable(fit(config, data, context).history) == comparable(expected)


def test_a_list_of_checkpoints_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    files, path = pickle.loads(pickle.dumps(WholeFiles())), str(tmp_path / "list.json")
    files.waits_s = (0.0,)
    with files.open_output_stream(path) as file:
        file.write(b"old")
    with suppress(InterruptedError), files.open_output_stream(path) as file:
        file.write(b"ne")
        raise InterruptedError
    with (
        disk_refuses_files_over(1 << 10),
        pytest.raises(CheckpointError, match="tried 2 times"),
        files.open_output_stream(path) as file,
    ):
        file.write(bytes(1 << 11))
    assert Path(path).read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["list.json"]
