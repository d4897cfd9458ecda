"""Classifiers: features equal torchvision's, weights load or are refused in one message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as reference_transforms

from fetal_core.config import parse
from fetal_core.errors import ConfigError, ModelError, StorageError
from fetal_core.model import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelConfig,
    PlaneClassifier,
    build,
    freeze,
    load_weights,
    trainable_parameters,
)


def built(
    architecture: str, weights: str = "none", classes: int = 4, seed: int = 0, size_px: int = 64
) -> PlaneClassifier:
    config = ModelConfig(architecture=architecture, weights=weights)
    return build(config, classes, 0.2, 0.1, seed, size_px).eval()


def grey_images(rows: int = 2, size_px: int = 64) -> Tensor:
    return torch.rand(rows, 1, size_px, size_px, generator=torch.Generator().manual_seed(5))


def seeded_reference(architecture: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return torchvision.models.get_model(architecture, weights=None).eval()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


LAST_LAYER = {
    "resnet50": "fc",
    "vgg11": "classifier.6",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
}


@pytest.mark.parametrize("architecture", LAST_LAYER)
@torch.inference_mode()
def test_features_are_those_of_torchvision(architecture: str) -> None:
    reference = seeded_reference(architecture)
    config = ModelConfig(architecture=architecture, weights="none", normalise="imagenet")
    model = build(config, 4, 0.2, 0.1, 0, 64).eval()
    load_weights(model, reference.state_dict(), "reference")
    images_NCHW = reference_transforms.normalize(
        grey_images().repeat(1, 3, 1, 1), list(IMAGENET_MEAN), list(IMAGENET_STD)
    )
    reference.set_submodule(LAST_LAYER[architecture], nn.Identity())
    features = model.features(grey_images())
    assert features.shape == (2, model.feature_dim)
    torch.testing.assert_close(features, reference(images_NCHW))
    torch.testing.assert_close(model(grey_images()), model.head(features))


@torch.inference_mode()
def test_squeezenet_features_are_pooled_maps(shared_weights: Path) -> None:
    path = shared_weights / "squeezenet1_1_imagenet.pth"
    model = built("squeezenet1_1", str(path))
    reference = torchvision.models.squeezenet1_1()
    reference.load_state_dict(torch.load(path, weights_only=True))
    images_NCHW = ((grey_images() - 0.2) / 0.1).repeat(1, 3, 1, 1)
    expected = reference.features(images_NCHW).mean((2, 3))
    torch.testing.assert_close(model.features(grey_images()), expected)
    assert model.feature_dim == 512
    assert model(grey_images()).shape == (2, 4)


@pytest.mark.parametrize(
    ("architecture", "size_px"),
    [
        ("googlenet", 64),
        ("shufflenet_v2_x0_5", 64),
        pytest.param("inception_v3", 96, marks=pytest.mark.slow),
        pytest.param("swin_t", 64, marks=pytest.mark.slow),
        pytest.param("vit_b_32", 224, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_other_families_give_logits(architecture: str, size_px: int) -> None:
    model = built(architecture, size_px=size_px)
    assert model(grey_images(1, size_px)).shape == (1, 4)
    model.train()
    assert isinstance(model(grey_images(2, size_px)), Tensor)


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        built("resnet_50")


@pytest.mark.parametrize(("architecture", "size_px"), [("vit_b_32", 256), ("squeezenet1_1", 8)])
def test_a_size_that_does_not_fit_is_refused(architecture: str, size_px: int) -> None:
    with pytest.raises(ConfigError, match=f"{architecture} cannot take images of {size_px} px"):
        built(architecture, size_px=size_px)


def test_the_seed_alone_decides_the_weights() -> None:
    state = torch.random.get_rng_state()
    first = built("resnet18", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert_same(built("resnet18", seed=1).state_dict(), first.state_dict())
    other = built("resnet18", seed=2)
    assert not torch.equal(other.backbone.conv1.weight, first.backbone.conv1.weight)
    assert not torch.equal(other.head.weight, first.head.weight)


def test_dropout_acts_on_features_in_training_only() -> None:
    config = ModelConfig(architecture="resnet18", weights="none", dropout=0.9)
    model = build(config, 4, 0.2, 0.1, 0, 64).eval()
    images = grey_images()
    assert torch.equal(model(images), model(images))
    model.dropout.train()
    assert not torch.equal(model(images), model(images))


def test_parameters_are_counted_and_frozen() -> None:
    model = built("resnet50", classes=6)
    backbone = 25_557_032 - 1000 * 2049  # torchvision's published count without its last layer
    assert trainable_parameters(model) == backbone + 6 * 2049
    freeze(model.backbone)
    assert trainable_parameters(model) == 6 * 2049


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_own_weights_come_back_with_their_head(tmp_path: Path, suffix: str) -> None:
    source = built("resnet18", seed=3)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    assert_same(built("resnet18", str(path)).state_dict(), source.state_dict())
    wider = built("resnet18", str(path), classes=6)
    assert_same(wider.backbone.state_dict(), source.backbone.state_dict())
    assert wider.head.out_features == 6


def test_the_normalisation_stays_that_of_the_new_data() -> None:
    source = built("resnet18")
    target = build(ModelConfig(architecture="resnet18", weights="none"), 4, 0.5, 0.25, 1, 64)
    load_weights(target, source.state_dict(), "source")
    assert target.mean.item() == 0.5
    assert target.std.item() == 0.25


def test_published_densenet_keys_are_understood() -> None:
    reference = seeded_reference("densenet121")
    published = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in reference.state_dict().items()
    }
    model = built("densenet121")
    load_weights(model, published, "published")
    expected = {
        key: value
        for key, value in reference.state_dict().items()
        if not key.startswith("classifier.")
    }
    assert_same(model.backbone.state_dict(), expected)


def test_auxiliary_heads_are_left_out() -> None:
    reference = torchvision.models.googlenet(init_weights=True)
    model = built("googlenet")
    load_weights(model, reference.state_dict(), "reference")
    assert torch.equal(model.backbone.conv1.conv.weight, reference.conv1.conv.weight)


def test_all_differences_are_in_one_error_and_nothing_changes() -> None:
    model = built("resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torchvision.models.resnet18().state_dict()
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    state["stem.bias"] = torch.zeros(1)
    del state["bn1.weight"]
    with pytest.raises(ModelError) as caught:
        load_weights(model, state, "somewhere.pth")
    message = str(caught.value)
    assert "somewhere.pth" in message
    assert "1 missing: bn1.weight" in message
    assert "1 unexpected: stem.bias" in message
    assert "conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)" in message
    assert_same(model.state_dict(), before)


def test_weights_of_another_architecture_are_refused(shared_weights: Path) -> None:
    with pytest.raises(ModelError, match="do not fit resnet18"):
        built("resnet18", str(shared_weights / "squeezenet1_1_imagenet.pth"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x00" * 64])
def test_unreadable_weights_are_a_model_error(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=name):
        built("resnet18", str(path))


class Unsafe:
    """Stands for any object that unpickling would have to construct."""


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}, {"model": Unsafe()}])
def test_a_file_without_a_state_dict_is_a_model_error(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ModelError, match="state dict"):
        built("resnet18", str(path))


def test_missing_weights_are_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        built("resnet18", str(tmp_path / "absent.pth"))


def test_downloaded_weights_come_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # An unreachable proxy stands for a machine without the internet.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModelError) as caught:
        built("resnet18", "imagenet")
    message = str(caught.value)
    folder = tmp_path / "hub" / "checkpoints"
    assert "https://download.pytorch.org/models/resnet18" in message
    assert str(folder) in message
    assert 'weights = "none"' in message


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(ModelConfig, {"dropout": 1.0, "normalise": "grey"}, "test")
    assert "dropout" in str(caught.value)
    assert "normalise" in str(caught.value)
