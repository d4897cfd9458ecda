"""How a job uses the cluster; apart from ``cluster`` so that reading flags does not import Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fetal_core.config import Config


class ClusterConfig(Config):
    """How a job uses the cluster.

    Attributes:
        workers: training processes.
        min_workers: training may go on with so few of them, and takes in machines that join, up to
            ``workers``; None: always ``workers``, and a lost one is waited for.
        look_again_s: seconds between looks for machines that have joined or left.
        max_failures: how often training goes on from its last checkpoint after a worker or its
            machine was lost; -1: without end.
        stop_within_s: what Ctrl-C or SIGTERM leaves the workers to write a last checkpoint; 0 ends
            them at once, and so does a second Ctrl-C.
        gpu: whether each of them gets a GPU; ``auto`` where the cluster has enough.
        cpus_per_worker: logical CPUs that Ray reserves for each.
        threads_per_worker: compute threads of each; 0 shares out the cores of its machine.
    """

    workers: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    look_again_s: float = Field(default=60.0, gt=0)
    max_failures: int = Field(default=3, ge=-1)
    stop_within_s: float = Field(default=20.0, ge=0)
    gpu: Literal["auto", "always", "never"] = "auto"
    cpus_per_worker: int = Field(default=1, ge=1)
    threads_per_worker: int = Field(default=0, ge=0)

    @property
    def fewest_workers(self) -> int:
        """With how many training processes a job can begin."""
        return self.workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _check_together(self) -> ClusterConfig:
        if self.fewest_workers > self.workers:
            raise ValueError(
                f"cluster.min_workers = {self.min_workers} is more than cluster.workers = "
                f"{self.workers}"
            )
        return self
