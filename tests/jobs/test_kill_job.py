"""Training that is killed, at random moments, ends as if it had not been.

``FETAL_KILL_ROUNDS`` is the number of kills of each kind, ``FETAL_KILL_SEED`` picks the moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builders import disk_of
from cohorts import flags, interrupt_when, kill, processes, recipe, run, spawn
from fetal_core.bundle import Bundle
from fetal_core.recipe import Recipe
from fetal_core.run_context import Event
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.prepare import PrepareOutcome
from ray_jobs.train import TrainOutcome, train
from test_train_job import history

pytestmark = [pytest.mark.ray, pytest.mark.heavy]

ROUNDS = int(os.environ.get("FETAL_KILL_ROUNDS", "2"))
SEED = int(os.environ.get("FETAL_KILL_SEED", "0"))
EPOCHS, INTERVAL = 4, 3
# Of one run; later ones come in a new run, so that every moment of it has its turn.
KILLS = 2
SCRIPT = str(Path(__file__).with_name("followed_train.py"))
WAIT_S = 240


@pytest.fixture(scope="module")
def settings() -> Recipe:
    return recipe(
        train={
            "epochs": EPOCHS,
            "batch_size": 4,
            "micro_batch": 2,
            "checkpoint_steps": INTERVAL,
            "ema_decay": 0.5,
            "mixup_alpha": 0.2,
        },
        model={"architecture": "squeezenet1_1", "dropout": 0.2},
        schedule={"name": "plateau", "patience": 0, "warmup_epochs": 1},
        optim={"lr": 0.003},
    )


@pytest.fixture(scope="module")
def undisturbed(
    prepared: PrepareOutcome, settings: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> TrainOutcome:
    folder = str(tmp_path_factory.mktemp("undisturbed") / "run")
    return train(prepared.prepared.uri, folder, settings, ClusterConfig(), lambda _: None)


@pytest.fixture(scope="module")
def long_settings(settings: Recipe) -> Recipe:
    """Checkpoints at the end of epochs only, of which there are enough to be interrupted in."""
    longer = settings.train.model_copy(update={"checkpoint_steps": 0, "epochs": 10 * EPOCHS})
    return settings.model_copy(update={"train": longer})


@pytest.fixture(scope="module")
def long_undisturbed(
    prepared: PrepareOutcome, long_settings: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> TrainOutcome:
    folder = str(tmp_path_factory.mktemp("long-undisturbed") / "run")
    return train(prepared.prepared.uri, folder, long_settings, ClusterConfig(), lambda _: None)


def expect_equal(run_uri: Path, undisturbed: TrainOutcome) -> None:
    """The same records and, bit for bit, the same weights."""
    assert history(str(run_uri)) == history(undisturbed.run.uri)
    found = Bundle.load(str(run_uri / "bundle")).model.state_dict()
    for key, value in Bundle.load(undisturbed.run.bundle_uri).model.state_dict().items():
        assert value.equal(found[key]), key


class Followed:
    """A run in a process of its own, and what it tells."""

    def __init__(self, prepared: str, folder: Path, settings: Recipe, workers: int = 1) -> None:
        self.uri = folder / "run"
        self._file = folder / "events.jsonl"
        self._words = [SCRIPT, prepared, str(self.uri), settings.model_dump_json(), str(workers)]

    @contextmanager
    def going(self) -> Iterator[subprocess.Popen[str]]:
        """The process, which is killed with all its children at the end of the block."""
        process = spawn(*self._words, str(self._file), cwd=self._file.parent)
        try:
            yield process
        finally:
            kill(process)

    def events(self) -> list[Event]:
        if not self._file.exists():
            return []
        # A killed process may have written half a line.
        lines = self._file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def checkpoints(self) -> int:
        """How many have been written so far, over all processes."""
        return sum(event["kind"] in ("kept", "epoch") for event in self.events())

    def wait_for_checkpoints(self, process: subprocess.Popen[str], number: int) -> None:
        """Wait for so many that come after the workers' present or next start."""
        before = self.checkpoints()
        starts = len(self.starts())
        deadline = time.monotonic() + WAIT_S
        while len(self.starts()) <= starts or self.checkpoints() < before + number:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, self.events()[-3:]
            time.sleep(0.02)

    def starts(self) -> list[int]:
        """Steps that were done already at each start of the workers."""
        return [position for position, kind in self._positions() if kind == "start"]

    def repeated(self) -> list[int]:
        """Steps that each start but the first repeats, as far as they were told."""
        found: list[int] = []
        farthest = 0
        for number, (position, kind) in enumerate(self._positions()):
            if kind == "start" and number:
                found.append(farthest - position)
                farthest = position
            farthest = max(farthest, position)
        return found

    def _positions(self) -> list[tuple[int, str]]:
        found = []
        steps = 0
        for event in self.events():
            if event["kind"] == "start":
                steps = event["steps"]
                found.append((event["epochs_done"] * steps + event["steps_done"], "start"))
            elif event["kind"] in ("step", "kept"):
                found.append(((event["epoch"] - 1) * steps + event["step"], event["kind"]))
            elif event["kind"] == "epoch":
                found.append((event["epoch"] * steps, "epoch"))
        return found


def moments(kind: str) -> Iterator[list[tuple[int, float]]]:
    """For each run, its kills: after how many checkpoints, and how many seconds later."""
    draw = random.Random(f"{kind} {SEED}")
    for begun in range(0, ROUNDS, KILLS):
        kills = range(min(KILLS, ROUNDS - begun))
        yield [(draw.randrange(4), draw.uniform(0, 0.5)) for _ in kills]


@pytest.mark.timeout(300 + 120 * ROUNDS)
def test_a_power_cut_repeats_an_interval_at_most_and_changes_nothing(
    prepared: PrepareOutcome, settings: Recipe, undisturbed: TrainOutcome, tmp_path: Path
) -> None:
    for number, kills in enumerate(moments("power")):
        folder = tmp_path / str(number)
        folder.mkdir()
        followed = Followed(prepared.prepared.uri, folder, settings)
        for checkpoints, delay_s in kills:
            with followed.going() as process:
                followed.wait_for_checkpoints(process, checkpoints)
                time.sleep(delay_s)
            assert not (followed.uri / "bundle").exists()
        with followed.going() as process:
            output, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, output
        expect_equal(followed.uri, undisturbed)
        assert len(followed.repeated()) == len(kills)
        assert max(followed.repeated()) <= INTERVAL, followed.repeated()


@pytest.mark.timeout(300 + 120 * ROUNDS)
def test_a_killed_worker_repeats_an_interval_at_most_and_changes_nothing(
    prepared: PrepareOutcome, settings: Recipe, undisturbed: TrainOutcome, tmp_path: Path
) -> None:
    for number, kills in enumerate(moments("worker")):
        folder = tmp_path / str(number)
        folder.mkdir()
        followed = Followed(prepared.prepared.uri, folder, settings)
        with followed.going() as process:
            for checkpoints, delay_s in kills:
                followed.wait_for_checkpoints(process, checkpoints)
                time.sleep(delay_s)
                (worker,) = processes(process, "RayTrainWorker")
                os.kill(worker, signal.SIGKILL)
            output, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, output
        expect_equal(followed.uri, undisturbed)
        kinds = [event["kind"] for event in followed.events()]
        assert kinds.count("lost") == len(kills)
        assert len(followed.repeated()) == len(kills)
        assert max(followed.repeated()) <= INTERVAL, followed.repeated()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_the_step_it_came_in(
    prepared: PrepareOutcome,
    long_settings: Recipe,
    long_undisturbed: TrainOutcome,
    tmp_path: Path,
    number: int,
) -> None:
    command = ("train", prepared.prepared.uri, *flags(long_settings))
    folder = tmp_path / "runs/run"
    code, output = interrupt_when(
        lambda: bool(history(str(folder))), *command, cwd=tmp_path, number=number
    )
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], output
    assert "writing a checkpoint before the end" in output
    (written,) = [line for line in output.splitlines() if line.startswith("checkpoint written")]
    where = written.removeprefix("checkpoint written ")
    assert "Traceback" not in output

    code, output = run(*command, cwd=tmp_path)
    assert code == 0, output
    assert f"resuming {where}" in output
    expect_equal(folder, long_undisturbed)


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(
    prepared: PrepareOutcome, settings: Recipe, undisturbed: TrainOutcome, tmp_path: Path
) -> None:
    command = ("train", prepared.prepared.uri, *flags(settings))
    (checkpoint,) = list(Path(undisturbed.run.uri).glob("checkpoints/checkpoint_*/trainer.pt"))[:1]
    size_bytes = sum(file.stat().st_size for file in checkpoint.parent.iterdir())
    # Room for the best one and the latest, but not for another before the latest is dropped.
    with disk_of(5 * size_bytes // 2, tmp_path / "runs") as (runs, make_room):
        folder = runs / "run"
        code, output = run(*command, cwd=tmp_path)
        assert code == 2, output
        assert "the checkpoint cannot be written" in output
        assert "No space left" in output
        assert "Traceback" not in output
        assert len(list(folder.glob("checkpoints/checkpoint_*/"))) == 2

        make_room()
        code, output = run(*command, cwd=tmp_path)
        assert code == 0, output
        assert f"resuming in epoch 2 of {EPOCHS}, after step {INTERVAL} of" in output
        expect_equal(folder, undisturbed)
