"""What a trial's own process computes with."""

from __future__ import annotations

import pytest

from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.training_inputs import Inputs
from ray_jobs.trial import Shared


def shared(gpu: bool, **cluster: int) -> Shared:
    return Shared(
        sweep_uri="sweep",
        inputs=Inputs({}, ("a", "b"), 32, 0.0, 1.0),
        cluster=ClusterConfig.model_validate(cluster),
        gpu=gpu,
        metric="val_accuracy",
        features={},
        keep_predictions=False,
        trials_a_machine=10_000,
    )


@pytest.mark.parametrize(
    ("gpu", "workers", "device"),
    [(False, 1, "cpu"), (True, 1, "cuda"), (True, 2, "cpu"), (False, 2, "cpu")],
)
def test_only_a_trial_without_other_workers_has_the_gpu_itself(
    gpu: bool, workers: int, device: str
) -> None:
    assert shared(gpu, workers=workers).device == device


def test_threads_are_those_asked_for_or_at_least_the_reserved_ones() -> None:
    assert shared(False, threads_per_worker=3).threads == 3
    assert shared(False, cpus_per_worker=2).threads == 2
