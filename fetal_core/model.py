"""Classifiers with a torchvision backbone, their initialisation and pretrained weights."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fetal_core.config import Config
from fetal_core.errors import ConfigError, ModelError
from fetal_core.pretrained import imagenet_state, read_state

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NAMED_WEIGHTS = ("imagenet", "none")

_SHOWN = 5
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# Published DenseNet files name layers ``norm.1`` where the module now says ``norm1``.
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class ModelConfig(Config):
    """The network.

    Attributes:
        architecture: name of a torchvision classifier.
        weights: ``imagenet`` (torchvision's default, downloaded once), ``none``, or path or S3 URI
            of a ``.pth`` or ``.safetensors`` state dict.
        dropout: before the linear head.
        normalise: by the training part's mean and standard deviation, or by those of ImageNet.
    """

    architecture: str = "resnet50"
    weights: str = "imagenet"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    normalise: Literal["dataset", "imagenet"] = "dataset"

    def statistics(self, mean: float, std: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation to normalise by, given those of the training part."""
        if self.normalise == "imagenet":
            return IMAGENET_MEAN, IMAGENET_STD
        return (mean,), (std,)


class PlaneClassifier(nn.Module):
    """A torchvision backbone without its last linear layer, dropout and a new linear head.

    Attributes:
        architecture: name of the torchvision classifier.
        classes: number of classes K.
        backbone: maps (N, 3, H, W) to (N, ``feature_dim``).
        dropout: applied to the features in training.
        head: ``nn.Linear(feature_dim, classes)``.
        feature_dim: number of features F.
        replaced: name of torchvision's last layer in the backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: str,
        classes: int,
        dropout: float = 0.0,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ) -> None:
        """Initialise from torch's global generator; ``build`` isolates it under a seed.

        Args:
            architecture: name of a torchvision classifier.
            classes: number of classes.
            dropout: probability in [0, 1).
            mean: of grey values in [0, 1]: one, or one for each of three channels.
            std: likewise, positive.

        Raises:
            ConfigError: the architecture is not known.
        """
        super().__init__()
        self.architecture = architecture
        self.classes = classes
        self.backbone = _torchvision_model(architecture)
        self.replaced, self.feature_dim = _cut_classifier(self.backbone)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.feature_dim, classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalise(self, images_N1HW: Tensor) -> Tensor:
        """Standardised images with three channels, (N, 3, H, W), from grey ones in [0, 1]."""
        return ((images_N1HW - self.mean) / self.std).expand(-1, 3, -1, -1)

    def features(self, images_N1HW: Tensor) -> Tensor:
        """Features of shape (N, F) of grey images in [0, 1]."""
        features_NF: Tensor = self.backbone(self.normalise(images_N1HW))
        return features_NF

    def forward(self, images_N1HW: Tensor) -> Tensor:
        """Logits of shape (N, K) of grey images in [0, 1]."""
        logits_NK: Tensor = self.head(self.dropout(self.features(images_N1HW)))
        return logits_NK


def build(
    config: ModelConfig, classes: int, mean: float, std: float, seed: int, image_size_px: int
) -> PlaneClassifier:
    """A classifier on the CPU, initialised from ``seed`` and then from ``config.weights``.

    Args:
        config: the network.
        classes: number of classes.
        mean: of the training part's grey values in [0, 1]; unused with ImageNet normalisation.
        std: likewise.
        seed: of the random initialisation; torch's global generator is left as it was.
        image_size_px: side of the square images that it will see.

    Raises:
        ConfigError: unknown architecture, or one that cannot take this image size.
        ModelError: the weights cannot be had or do not fit.
        StorageError: the weights file cannot be read.
    """
    means, stds = config.statistics(mean, std)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = PlaneClassifier(
            config.architecture,
            classes,
            config.dropout,
            mean=means,
            std=stds,
        )
    _check_image_size(model, image_size_px)
    if config.weights == "none":
        _start_residual_blocks_as_identity(model.backbone)
    elif config.weights == "imagenet":
        load_weights(model, imagenet_state(config.architecture), "the ImageNet weights")
    else:
        load_weights(model, read_state(config.weights), config.weights)
    return model


def _start_residual_blocks_as_identity(network: nn.Module) -> None:
    """Zero the last norm of every ResNet block, which steadies early training (Goyal 2017)."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    for module in network.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)


def load_weights(model: PlaneClassifier, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into ``model``, whose normalisation stays.

    Args:
        model: changed in place.
        state: a torchvision state dict, whose last layer is dropped, or one of this project's own
            (``backbone.*`` and ``head.*``), whose head is kept only if its shape fits.
        where: origin of ``state`` for messages.

    Raises:
        ModelError: keys are missing, unexpected or of another shape; the model is unchanged.
    """
    own = any(key.startswith("backbone.") for key in state)
    found = {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    if own:
        backbone, head = _under("backbone", found), _under("head", found)
    else:
        dropped = (*_AUXILIARY, f"{model.replaced}.")
        backbone = {key: value for key, value in found.items() if not key.startswith(dropped)}
        head = {}
    faults = _differences(model.backbone.state_dict(), backbone)
    if faults:
        raise ModelError(
            f"{where}: these weights do not fit {model.architecture}:\n"
            + "\n".join(f"  - {fault}" for fault in faults)
            + "\nSet `model.architecture` to the one that they were trained with, or give others."
        )
    model.backbone.load_state_dict(backbone)
    if head and not _differences(model.head.state_dict(), head):
        model.head.load_state_dict(head)
    elif head:
        logger.info("%s: head of another number of classes left out", where)


def trainable_parameters(module: nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def freeze(module: nn.Module) -> None:
    """Exclude all parameters of ``module`` from training."""
    module.requires_grad_(False)


def _cut_classifier(network: nn.Module) -> tuple[str, int]:
    """Take away the layer that ends in ImageNet's classes; its name and number of inputs."""
    from torchvision.models import SqueezeNet

    if isinstance(network, SqueezeNet):
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return "classifier", 512
    linear = [item for item in network.named_modules() if isinstance(item[1], nn.Linear)]
    name, classifier = linear[-1]
    network.set_submodule(name, nn.Identity())
    return name, cast(nn.Linear, classifier).in_features


def _torchvision_model(architecture: str) -> nn.Module:
    # Takes as long to import as torch itself: processes that build no network go without.
    from torchvision import models

    known = models.list_models(module=models)
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
        names = ", ".join(known)
        raise ConfigError(
            f"model.architecture: unknown name {architecture!r}{hint} Known names: {names}."
        )
    auxiliary = architecture in ("googlenet", "inception_v3")
    options = {"aux_logits": False, "init_weights": True} if auxiliary else {}
    network: nn.Module = models.get_model(architecture, weights=None, **options)
    return network


def _check_image_size(model: PlaneClassifier, image_size_px: int) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    images_N1HW = torch.zeros(1, 1, image_size_px, image_size_px, device="meta")
    training = model.training
    try:
        torch.func.functional_call(model.eval(), shapes, (images_N1HW,))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(" .!")
        raise ConfigError(
            f"model.architecture: {model.architecture} cannot take images of {image_size_px} px: "
            f"{reason}. Set `preprocess.size_px` to the size that it was made for (mostly 224), "
            "or choose a network for any size, e.g. 'resnet50'."
        ) from None
    model.train(training)


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    # Files from before torch 0.4.1 lack this counter.
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in wanted]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return [
        f"{len(keys)} {label}: {', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''}"
        for label, keys in groups.items()
        if keys
    ]
