"""Heat maps that show where in an image a classifier saw the evidence for a class."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from fetal_core.errors import ConfigError
from fetal_core.model import PlaneClassifier
from fetal_core.preprocess import PreprocessConfig
from fetal_core.preprocess import preprocess as to_network_input

PALETTE = ("#360079", "#740786", "#b02478", "#e34959", "#ff8035", "#ffbe56", "#fff465")
"""Colours of heat from 0 to 1 in equal steps; lightness rises, also for colour-blind eyes."""

_MOST_OPAQUE = 0.7
_BLOCK_ROWS = 64  # in double precision, which takes fifty bytes a pixel
_LAST_MAP: dict[type[nn.Module], str] = {
    models.AlexNet: "features",
    models.ConvNeXt: "features",
    models.DenseNet: "features",
    models.EfficientNet: "features",
    models.GoogLeNet: "inception5b",
    models.Inception3: "Mixed_7c",
    models.MNASNet: "layers",
    models.MobileNetV2: "features",
    models.MobileNetV3: "features",
    models.RegNet: "trunk_output",
    models.ResNet: "layer4",
    models.ShuffleNetV2: "conv5",
    models.SqueezeNet: "features",
    models.VGG: "features",
}


def grad_cam(
    model: PlaneClassifier,
    image_HW: NDArray[np.uint8],
    preprocess: PreprocessConfig,
    class_index: int | None = None,
) -> NDArray[np.float32]:
    """Grad-CAM of the last convolutional feature map (Selvaraju et al. 2017).

    The model may serve other threads meanwhile: it is neither changed nor hooked, and keeps no
    gradient.

    Args:
        model: on any device, in any mode; it is evaluated without dropout.
        image_HW: grey uint8 of any size, as decoded.
        preprocess: how the model's inputs are made.
        class_index: class whose logit is explained; None for the one with the greatest.

    Returns:
        float32 ``(H, W)`` in [0, 1] over the pixels of ``image_HW``; 1 is the greatest heat of the
        whole input, its padding included; 0 everywhere where nothing speaks for the class.

    Raises:
        ConfigError: the network has no convolutional map at its end, or no such class.
    """
    layer = _last_map(model)
    if class_index is not None and not 0 <= class_index < model.classes:
        raise ConfigError(
            f"class index {class_index}: the model has {model.classes} classes. "
            f"Give 0 to {model.classes - 1}."
        )
    small_HW = to_network_input(image_HW, preprocess)
    device = next(model.parameters()).device
    with torch.inference_mode(False), torch.enable_grad():
        images_N1HW = torch.tensor(small_HW, device=device)[None, None].float().div_(255)
        maps_1CHW, slopes_1CHW = _maps_and_slopes(model, layer, images_N1HW, class_index)
    weights_1C11 = slopes_1CHW.mean((2, 3), keepdim=True)
    cam_11HW = (weights_1C11 * maps_1CHW).sum(1, keepdim=True).relu()
    heat_11HW = functional.interpolate(cam_11HW.float(), small_HW.shape, mode="bilinear")
    greatest = heat_11HW.max()
    if greatest > 0:
        heat_11HW = heat_11HW / greatest
    return _to_original(heat_11HW, image_HW.shape, preprocess)


def overlay_png(image_HW: NDArray[np.uint8], heat_HW: NDArray[np.float32]) -> bytes:
    """The image under its heat as an RGB PNG; the hotter, the less transparent.

    Args:
        image_HW: grey uint8.
        heat_HW: float32 in [0, 1] of the same shape.
    """
    mixed_HWC = np.empty((*image_HW.shape, 3), np.uint8)
    for start in range(0, len(image_HW), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        mixed_HWC[rows] = _mixed(image_HW[rows], heat_HW[rows])
    buffer = io.BytesIO()
    Image.fromarray(mixed_HWC).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _mixed(image_HW: NDArray[np.uint8], heat_HW: NDArray[np.float32]) -> NDArray[np.float64]:
    levels_HW = np.rint(heat_HW * 255).astype(np.uint8)
    alpha_HW1 = (_MOST_OPAQUE * heat_HW)[..., None]
    mixed_HWC: NDArray[np.float64] = np.rint(
        (1 - alpha_HW1) * image_HW[..., None] + alpha_HW1 * palette_table()[levels_HW]
    )
    return mixed_HWC


def palette_table() -> NDArray[np.float64]:
    """sRGB values in [0, 255] of 256 levels of heat, of shape (256, 3)."""
    anchors = np.array([list(bytes.fromhex(colour[1:])) for colour in PALETTE])
    at = np.linspace(0, 1, len(anchors))
    levels = np.linspace(0, 1, 256)
    return np.stack([np.interp(levels, at, channel) for channel in anchors.T], axis=1)


def _last_map(model: PlaneClassifier) -> str:
    """Name in the backbone of the module that gives the last map before pooling."""
    found = [name for kind, name in _LAST_MAP.items() if isinstance(model.backbone, kind)]
    if not found:
        raise ConfigError(
            f"model.architecture: {model.architecture} cannot be explained by Grad-CAM, which "
            "needs a convolutional feature map before the head. Use a convolutional network, "
            "e.g. 'resnet50' or 'convnext_tiny'."
        )
    layer = model.backbone.get_submodule(found[0])
    if isinstance(layer, nn.Sequential) and isinstance(layer[-1], nn.MaxPool2d):
        return f"{found[0]}.{len(layer) - 2}"
    return found[0]


def _maps_and_slopes(
    model: PlaneClassifier, layer: str, images_N1HW: Tensor, class_index: int | None
) -> tuple[Tensor, Tensor]:
    """The last map of one image and the gradient of the class's logit with respect to it."""
    own = _with_shared_weights(model).eval()
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output_NCHW: Tensor) -> Tensor:
        # A copy, as DenseNet goes on to rectify its last map in place: that is then the last one.
        kept.append(output_NCHW.detach().requires_grad_().clone())
        return kept[0]

    own.backbone.get_submodule(layer).register_forward_hook(keep)
    logits_NK = own(images_N1HW)
    index = int(logits_NK[0].argmax()) if class_index is None else class_index
    (slopes_NCHW,) = torch.autograd.grad(logits_NK[0, index], kept[0])
    return kept[0].detach(), slopes_NCHW


def _with_shared_weights(model: PlaneClassifier) -> PlaneClassifier:
    """A copy of the modules over the same memory, whose parameters ask for no gradient."""
    tensors: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        tensors[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, tensors)


def _to_original(
    heat_11HW: Tensor, shape: tuple[int, ...], config: PreprocessConfig
) -> NDArray[np.float32]:
    top, left, height_px, width_px = _content_box(shape, config)
    content_11HW = heat_11HW[..., top : top + height_px, left : left + width_px]
    full_11HW = functional.interpolate(content_11HW, shape, mode="bilinear", antialias=True)
    heat_HW: NDArray[np.float32] = full_11HW[0, 0].clamp(0, 1).cpu().numpy()
    return heat_HW


def _content_box(shape: tuple[int, ...], config: PreprocessConfig) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of an image of ``shape`` within the input."""
    size = config.size_px
    if config.fit == "squash":
        return 0, 0, size, size
    scale = size / max(shape)
    height_px, width_px = (max(1, round(side * scale)) for side in shape)
    return (size - height_px) // 2, (size - width_px) // 2, height_px, width_px
