"""Conversion of a bundle's network to OpenVINO, and to 8-bit integers by NNCF."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import rich
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fetal_core.bundle import Bundle
from fetal_core.engine import openvino
from fetal_core.errors import ConfigError
from fetal_core.losses import LossName, scores
from fetal_core.model import PlaneClassifier
from fetal_core.rows import RowStore

_LINEAR = ("Convolution", "GroupConvolution", "MatMul")
_TRANSFORMERS = ("vit_", "swin_", "maxvit")


@dataclass(frozen=True)
class Method:
    """One way to quantise.

    Attributes:
        asymmetric: activations get a zero point as well as a scale.
        float_ends: the first and the last linear layer stay in floating point.
    """

    name: str
    asymmetric: bool
    float_ends: bool


METHODS = (
    Method("symmetric", asymmetric=False, float_ends=False),
    Method("asymmetric", asymmetric=True, float_ends=False),
    Method("asymmetric with float ends", asymmetric=True, float_ends=True),
)


class _Network(nn.Module):
    """From uint8 images (N, H, W) to scores (N, K)."""

    def __init__(self, model: PlaneClassifier, loss: LossName) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, images_NHW: Tensor) -> Tensor:
        return scores(self.model(images_NHW.unsqueeze(1).float() / 255), self.loss)


def convert(bundle: Bundle) -> Any:
    """The network as an ``openvino.Model`` in float32: uint8 (N, H, W) -> float32 (N, K).

    Scaling, normalisation and the loss's link function are part of the graph; N is free.

    Raises:
        ConfigError: OpenVINO is missing, or cannot convert this architecture.
    """
    runtime, size_px = openvino(), bundle.info.preprocess.size_px
    network = _Network(copy.deepcopy(bundle.model), bundle.info.loss).eval()
    network.to(memory_format=torch.contiguous_format)
    images_NHW = torch.zeros(2, size_px, size_px, dtype=torch.uint8)
    free = ({0: torch.export.Dim("images", min=1, max=4096)},)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(network, (images_NHW,), dynamic_shapes=free)
            model = runtime.convert_model(program)
            model.reshape([-1, size_px, size_px])
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{bundle.info.architecture} cannot be converted to OpenVINO: {reason}. "
            "Serve it with the engine 'torch'."
        ) from None
    return model


def quantise(
    model: Any,
    images_NHW: NDArray[np.uint8],
    architecture: str,
    method: Method,
    on_image: Callable[[int, int], None],
) -> Any:
    """``model`` with weights and activations in 8 bits, by NNCF's post-training quantisation.

    Weights take 7 of the 8 bits, so that sums cannot overflow on processors without VNNI or AMX:
    the answers measured on one processor are those given on another.

    Args:
        model: from :func:`convert`; not changed.
        images_NHW: uint8, to calibrate the ranges of the activations on.
        architecture: torchvision's name of the network.
        method: see :class:`Method`.
        on_image: called with (done, total) for each calibration image.

    Raises:
        ConfigError: NNCF is missing.
    """
    nncf = _nncf()
    total = len(images_NHW)

    def present(row: int) -> NDArray[np.uint8]:
        on_image(row + 1, total)
        return images_NHW[row : row + 1]

    transformer = architecture.startswith(_TRANSFORMERS)
    with _quiet():
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(range(total), present),
            subset_size=total,
            preset=nncf.QuantizationPreset.MIXED
            if method.asymmetric
            else nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=nncf.IgnoredScope(names=_ends(model)) if method.float_ends else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
        )


def calibration_images(store: RowStore, images: int, seed: int) -> NDArray[np.uint8]:
    """A random draw, uint8 (N, H, W), as even over the classes as they allow."""
    order = np.random.default_rng(seed).permutation(len(store))
    labels_N = store.labels_N.numpy()[order]
    rank_N = np.zeros(len(order), np.int64)
    for label in np.unique(labels_N):
        mine_N = labels_N == label
        rank_N[mine_N] = np.arange(mine_N.sum())
    drawn = order[np.argsort(rank_N, kind="stable")[:images]]
    return store.images(drawn.tolist()).squeeze(1).numpy()


def converter_versions() -> dict[str, str]:
    """Versions of the software that converts."""
    return {name: version(name) for name in ("openvino", "nncf", "torch")}


def _ends(model: Any) -> list[str]:
    """Names of the first and the last linear layer."""
    linear = [op for op in model.get_ordered_ops() if op.get_type_name() in _LINEAR]
    return [linear[0].get_friendly_name(), linear[-1].get_friendly_name()]


def _nncf() -> Any:
    openvino()
    try:
        import nncf
    except ImportError:
        raise ConfigError(
            "NNCF is not installed. Run `pip install 'fetal-planes[export]'`, "
            "or choose the engine 'openvino'."
        ) from None
    # nncf.set_log_level would also set the levels of handlers that others share.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps NNCF's own progress bars, which it draws on rich's global console, off the terminal."""
    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
