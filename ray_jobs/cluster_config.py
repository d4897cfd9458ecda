"""How a job uses the cluster; apart from ``cluster`` so that reading flags does not import Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fetal_core.config import Config


class ClusterConfig(Config):
    """How a job uses the cluster.

    Attributes:
        workers: training processes.
        gpu: whether each of them gets a GPU; ``auto`` where the cluster has enough.
        cpus_per_worker: logical CPUs that Ray reserves for each.
        threads_per_worker: compute threads of each; 0 shares out the cores of its machine.
    """

    workers: int = Field(default=1, ge=1)
    gpu: Literal["auto", "always", "never"] = "auto"
    cpus_per_worker: int = Field(default=1, ge=1)
    threads_per_worker: int = Field(default=0, ge=0)
