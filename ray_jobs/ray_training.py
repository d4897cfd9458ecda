"""``fetal_core``'s training loop on the workers of a Ray Train trainer."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR
from ray.train.v2.api.exceptions import TrainingFailedError

from fetal_core import storage
from fetal_core.arrow_files import filesystem
from fetal_core.batches import BatchPlan
from fetal_core.errors import ConfigError
from fetal_core.fit_config import FitConfig
from fetal_core.machine import cores
from fetal_core.run_context import Event
from fetal_core.train import fit
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.events import listening
from ray_jobs.failures import FailureCallback, training_failure
from ray_jobs.ray_context import RayContext, StoredRayContext
from ray_jobs.signals import asking_first
from ray_jobs.training_inputs import Inputs, Loading, received
from ray_jobs.whole_files import WholeFiles
from ray_jobs.workspace import CHECKPOINTS

OnEvent = Callable[[Event], None]

_GLIBC = "GLIBC_TUNABLES"
_KEEP_MEMORY = (
    f"glibc.malloc.mmap_threshold={1 << 30}",
    f"glibc.malloc.trim_threshold={8 << 30}",
    # Ray runs the loop in a thread, whose own arena could not hold blocks above 64 MB.
    "glibc.malloc.arena_max=1",
)

# How often Ray takes note of what workers report; by itself it looks every two seconds.
_POLL_S = "0.5"


def train_on_ray(
    uri: str,
    inputs: Inputs | Callable[[], Inputs],
    config: FitConfig,
    cluster: ClusterConfig,
    gpu: bool,
    on_event: OnEvent,
    store: str | None = None,
) -> ray.train.Result:
    """Train on the workers that ``cluster`` asks for; the same ``uri`` again continues the run.

    Args:
        uri: folder of the run.
        inputs: what to train on, or a function that loads it while the workers start.
        config: how.
        cluster: number of workers and their resources.
        gpu: whether each of them gets a GPU.
        on_event: called in this process.
        store: folder of a ``CheckpointStore`` to keep checkpoints in, instead of Ray Train's own;
            each one is followed by an event ``report``.

    Raises:
        FetalError: what the training loop or the loading raised, or ``WorkerDiedError``.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; workers that were taking steps have first
            written a checkpoint, unless it took them too long.
    """
    os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, _POLL_S)
    stepping = _Stepping(on_event)
    with (
        asking_first(stepping.is_set, cluster.stop_within_s) as stop,
        listening(stepping, stop) as mailbox,
    ):
        loading = None if isinstance(inputs, Inputs) else Loading(inputs, mailbox)
        loop_config = {
            "inputs": inputs if loading is None else None,
            "fit": config.model_dump(),
            "threads": cluster.threads_per_worker,
            "mailbox": mailbox,
            "store": store,
        }
        lost = FailureCallback(partial(mailbox.put.remote, {"kind": "lost"}))
        trainer = _Trainer(
            _worker,
            train_loop_config=loop_config,
            scaling_config=_scaling(cluster, gpu),
            run_config=_run_config(uri, cluster, lost),
        )
        try:
            return trainer.fit()
        except KeyboardInterrupt:
            trainer.abandon()
            raise
        except TrainingFailedError as error:
            if loading is not None and loading.error is not None:
                raise loading.error from None
            raise training_failure(error) from None


class _Stepping:
    """Takes the events of a run; knows from them whether the workers take steps."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._there = False
        self._lost = False

    def __call__(self, event: Event) -> None:
        if event["kind"] in ("start", "lost", "stopped"):
            self._there = event["kind"] == "start"
            # Where a machine is drained, Ray finds the same loss again and again until it is gone.
            again, self._lost = self._lost, event["kind"] == "lost"
            if again and self._lost:
                return
        self._on_event(event)

    def is_set(self) -> bool:
        """Whether they do, and so can write a checkpoint when asked."""
        return self._there


class _Trainer(ray.train.torch.TorchTrainer):
    """Ends at once when its driver does, since checkpoints are whole or absent."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave the signal alone: Ray would wait for workers that may only be starting."""
        self._controller = controller

    def abandon(self) -> None:
        """End the workers, on a cluster that goes on."""
        if self._controller is not None:
            ray.kill(self._controller)


def check_elastic(config: FitConfig, cluster: ClusterConfig, rows: int) -> None:
    """Refuse a changing number of workers where the numbers would change with it.

    Args:
        config: of the training.
        cluster: how many workers there may be.
        rows: of the training part.

    Raises:
        ConfigError: micro-batches are too few to be the same on any number of workers.
    """
    train = config.train
    if cluster.min_workers is None or train.mode == "probe":
        return
    rows = min(rows, train.max_train_images or rows)
    plan = BatchPlan(rows, train.batch_size, train.micro_batch, 1, train.seed)
    if plan.most_ranks < cluster.workers:
        fitting = max(1, rows // plan.steps // cluster.workers)
        raise ConfigError(
            f"cluster.min_workers: with train.micro_batch = {train.micro_batch}, results would "
            f"depend on how many of the {cluster.workers} workers are there. Set "
            f"train.micro_batch = {fitting} or less, so that every batch has a micro-batch for "
            "each of them."
        )


def allocator_settings() -> dict[str, str]:
    """Environment of a training worker, in which glibc keeps freed memory for the next step.

    Every step allocates the same activations, some of 100 MB. By default each is mapped anew and
    zeroed in pages of 4 kB. Settings of the user's own are left as they are.
    """
    return {} if _GLIBC in os.environ else {_GLIBC: ":".join(_KEEP_MEMORY)}


def _run_config(uri: str, cluster: ClusterConfig, failures: FailureCallback) -> ray.train.RunConfig:
    fs, path = filesystem(uri)
    if not storage.is_remote(uri):
        fs = WholeFiles()
    # Its annotations are those of an older version.
    config: Any = ray.train.RunConfig
    run: ray.train.RunConfig = config(
        name=CHECKPOINTS,
        storage_path=path,
        storage_filesystem=fs,
        # The best epoch's checkpoint; Ray keeps the latest one besides, and resumes from that.
        checkpoint_config=ray.train.CheckpointConfig(
            num_to_keep=1,
            checkpoint_score_attribute="is_best",
        ),
        failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
        callbacks=[failures],
        worker_runtime_env={"env_vars": allocator_settings()},
    )
    return run


def _scaling(cluster: ClusterConfig, gpu: bool) -> ray.train.ScalingConfig:
    workers: int | tuple[int, int] = cluster.workers
    if cluster.min_workers is not None:
        workers = cluster.min_workers, cluster.workers
    # Its annotations are those of an older version.
    config: Any = ray.train.ScalingConfig
    scaling: ray.train.ScalingConfig = config(
        num_workers=workers,
        elastic_resize_monitor_interval_s=cluster.look_again_s,
        use_gpu=gpu,
        resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
    )
    return scaling


def _worker(config: dict[str, Any]) -> None:
    """Runs in every Ray Train worker."""
    context = RayContext(config["mailbox"])
    if config["store"] is not None:
        context = StoredRayContext(config["mailbox"], config["store"])
    local = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(config["threads"] or max(1, cores() // local))
    inputs = config["inputs"] or received(config["mailbox"])
    fit(FitConfig(**config["fit"]), inputs.training_data(), context)
