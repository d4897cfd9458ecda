"""How many workers a job may have, and which of their failures are tried again."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError

from builders import fit_config
from fetal_core.config import parse
from fetal_core.errors import ConfigError, NonFiniteLossError, StorageError
from ray_jobs.cluster import NODE_GROUPS, ResourceError, node_groups
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.console import training_view
from ray_jobs.failures import FailureCallback, WorkerDiedError, training_failure
from ray_jobs.ray_training import check_elastic


@pytest.mark.parametrize(
    ("values", "fewest"),
    [({}, 1), ({"workers": 3}, 3), ({"workers": 3, "min_workers": 2}, 2)],
)
def test_a_job_begins_with_its_fewest_workers(values: dict[str, Any], fewest: int) -> None:
    assert ClusterConfig(**values).fewest_workers == fewest


def test_fewest_workers_are_not_more_than_all() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.min_workers = 3 is more than .* 2"):
        parse(ClusterConfig, {"workers": 2, "min_workers": 3}, "test")


@pytest.mark.parametrize(
    "told",
    ["4", "[4]", '[{"most": 4}]', '[{"most": 4, "resources": {"CPU": "x"}}]', '[{"machines": 4}]'],
)
def test_what_a_cluster_can_grow_by_is_told_as_json(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NODE_GROUPS, told)
    with pytest.raises(ResourceError, match=rf"{NODE_GROUPS}: .* Write it as \[\{{"):
        node_groups()


ELASTIC = ClusterConfig(workers=3, min_workers=1)


@pytest.mark.parametrize(("micro", "fits"), [(None, False), (6, False), (4, True), (1, True)])
def test_a_changing_number_of_workers_needs_a_micro_batch_for_each(
    micro: int | None, fits: bool
) -> None:
    config = fit_config(train={"batch_size": 12, "micro_batch": micro})
    check_elastic(config, ClusterConfig(workers=3), rows=24)
    if fits:
        check_elastic(config, ELASTIC, rows=24)
    else:
        with pytest.raises(ConfigError, match=r"train\.micro_batch = 4 or less"):
            check_elastic(config, ELASTIC, rows=24)


def test_the_advised_micro_batch_fits_the_smallest_batch() -> None:
    # Batches of 16 at most become four of 13 or 12 images.
    config = fit_config(train={"batch_size": 16, "micro_batch": 6})
    with pytest.raises(ConfigError, match=r"train\.micro_batch = 4 or less"):
        check_elastic(config, ELASTIC, rows=49)
    advised = fit_config(train={"batch_size": 16, "micro_batch": 4})
    check_elastic(advised, ELASTIC, rows=49)


def test_a_linear_probe_has_no_micro_batches() -> None:
    check_elastic(fit_config(train={"mode": "probe"}), ELASTIC, rows=24)


def raised_in_a_worker(error: Exception) -> Exception:
    return RayTaskError("train", "traceback", error).as_instanceof_cause()


@pytest.mark.parametrize(
    "error", [NonFiniteLossError("the loss is not finite"), ConfigError("no such part")]
)
def test_what_would_fail_again_is_not_tried_again(error: Exception) -> None:
    worker_errors = {0: RuntimeError("connection closed"), 1: raised_in_a_worker(error)}
    context: Any = None
    told: list[str] = []
    with pytest.raises(type(error), match=str(error)):
        FailureCallback(partial(told.append, "lost")).after_exception(context, worker_errors)
    assert told == []
    # Ray Train ends the run with whatever a callback raises.
    final = training_failure(ControllerError(error))
    assert (type(final), str(final)) == (type(error), str(error))


@pytest.mark.parametrize(
    "error", [RuntimeError("the machine is gone"), StorageError("the store does not answer")]
)
def test_what_may_pass_is_told_and_tried_again(error: Exception) -> None:
    context: Any = None
    told: list[str] = []
    callback = FailureCallback(partial(told.append, "lost"))
    callback.after_exception(context, {0: raised_in_a_worker(error)})
    assert told == ["lost"]


def test_lost_workers_are_told_as_such() -> None:
    error = WorkerGroupError("a worker failed", {0: RuntimeError("SIGKILL")})
    assert isinstance(training_failure(error), WorkerDiedError)


def test_the_view_tells_of_workers_that_come_and_go(capsys: pytest.CaptureFixture[str]) -> None:
    start = {"kind": "start", "epochs": 4, "steps": 2, "epochs_done": 0, "steps_done": 0}
    with training_view() as view:
        view({**start, "shares": (8,)})
        assert capsys.readouterr().out == ""
        view({**start, "shares": (4, 4), "epochs_done": 1})
        view({"kind": "lost"})
        view({**start, "shares": (8,), "epochs_done": 2})
        view({**start, "shares": (8,), "epochs_done": 2, "steps_done": 1})
    assert capsys.readouterr().out.splitlines() == [
        "resuming after epoch 1 of 4",
        "workers: 2, with 4 + 4 images of each batch of 8",
        "a worker was lost; training goes on from its last checkpoint once there are enough",
        "resuming after epoch 2 of 4",
        "workers: 1, with 8 images of each batch of 8",
        "resuming in epoch 3 of 4, after step 1 of 2",
    ]
