"""Pretrained weights as state dicts: torchvision's, or from a file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fetal_core import storage
from fetal_core.errors import ModelError

_UNREADABLE = (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError)


def imagenet_state(architecture: str) -> Mapping[str, Tensor]:
    """torchvision's default ImageNet weights of an architecture, downloaded once.

    Raises:
        ModelError: they are neither in torch's cache nor can they be downloaded.
    """
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(architecture).DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"the ImageNet weights of {architecture} cannot be downloaded from {weights.url}: "
            f"{error}. Fetch that file elsewhere and put it into {folder} under its own name, or "
            'set `model.weights` to its path, or train from scratch with `weights = "none"`.'
        ) from None
    return state


def read_state(uri: str) -> Mapping[str, Tensor]:
    """A state dict from a ``.safetensors`` or ``.pth`` file; nothing but tensors is unpickled.

    Raises:
        StorageError: the file cannot be read.
        ModelError: it does not hold a state dict.
    """
    data = storage.read_bytes(uri)
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{uri}: cannot be read as a state dict: {reason} "
            "Give a .safetensors file, or a .pth file written by torch.save(model.state_dict())."
        ) from None
    tensors = isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors or not state:
        raise ModelError(
            f"{uri}: does not hold a state dict of tensors but a {type(state).__name__}. "
            "Save `model.state_dict()` alone, without optimizer or epoch."
        )
    return dict(state)
