"""The frozen backbone's features, computed once for all linear probes of a sweep."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import ray
import torch

from fetal_core.fit_config import FitConfig
from fetal_core.machine import cores
from fetal_core.run_context import LocalContext
from fetal_core.train import backbone_features, features_key
from ray_jobs.failures import user_error
from ray_jobs.training_inputs import Inputs


def probe_features(configs: Sequence[FitConfig], inputs: Inputs, gpu: bool) -> dict[str, Any]:
    """The frozen backbones' features of linear probes, each computed once, by ``features_key``.

    Raises:
        FetalError: a network cannot be built.
    """
    probes = {features_key(c): c for c in configs if c.train.mode == "probe"}
    if not probes:
        return {}
    compute = ray.remote(_compute_features).options(num_cpus=1, num_gpus=1 if gpu else 0)
    refs = {}
    for key, config in probes.items():
        refs[key] = compute.remote(config, inputs, "cuda" if gpu else "cpu", cores())
        try:
            # One at a time: each takes all cores.
            ray.get(refs[key])
        except ray.exceptions.RayError as error:
            raise user_error(error) or error from None
    return refs


def _compute_features(config: FitConfig, inputs: Inputs, device: str, threads: int) -> Any:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        return backbone_features(config, inputs.training_data(), LocalContext(folder, device))
