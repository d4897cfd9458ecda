"""Grad-CAM: equal to a plain implementation, right where the answer is known, in place."""

from __future__ import annotations

import functools
import io
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from data_samples import texture
from fetal_core.errors import ConfigError
from fetal_core.explain import PALETTE, grad_cam, overlay_png, palette_table
from fetal_core.model import PlaneClassifier
from fetal_core.preprocess import PreprocessConfig, preprocess

SQUARE = PreprocessConfig(size_px=64)
# Linear RGB as seen without red, green or blue cones (Machado, Oliveira, Fernandes 2009).
PROTAN = (
    (0.152286, 1.052583, -0.204868),
    (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
)
DEUTAN = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
TRITAN = (
    (1.255528, -0.076749, -0.178779),
    (-0.078411, 0.930809, 0.147602),
    (0.004733, 0.691367, 0.303900),
)

POOLED_THEN_LINEAR = {
    "resnet18": "layer4",
    "squeezenet1_1": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "mobilenet_v2": "features",
    "mnasnet0_5": "layers",
    "regnet_y_400mf": "trunk_output",
    "shufflenet_v2_x0_5": "conv5",
    "googlenet": "inception5b",
}
OTHERS = {
    "vgg11": "features.19",
    "convnext_tiny": "features",
    "mobilenet_v3_small": "features",
}


def classifier(architecture: str, classes: int = 4) -> PlaneClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return PlaneClassifier(architecture, classes, 0.5, mean=(0.3,), std=(0.2,)).eval()


def plain_grad_cam(
    model: PlaneClassifier, layer: str, image_HW: NDArray[np.uint8], class_index: int
) -> NDArray[np.float64]:
    """Square images only: hooks on the model itself, backward, loops over channels."""
    seen: dict[str, Tensor] = {}
    module = model.backbone.get_submodule(layer)

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        seen["maps"] = output.clone()
        seen["maps"].register_hook(lambda slopes: seen.update(slopes=slopes))
        return seen["maps"].clone()

    handle = module.register_forward_hook(hook)
    model(torch.tensor(image_HW)[None, None].float() / 255)[0, class_index].backward()
    handle.remove()
    model.zero_grad()
    maps_CHW = seen["maps"][0].detach().double().numpy()
    slopes_CHW = seen["slopes"][0].double().numpy()
    cam_HW = np.zeros(maps_CHW.shape[1:])
    for map_HW, slope_HW in zip(maps_CHW, slopes_CHW, strict=True):
        cam_HW += map_HW * slope_HW.mean()
    return scaled(np.maximum(cam_HW, 0), image_HW.shape)


def scaled(cam_HW: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    large_HW = functional.interpolate(torch.tensor(cam_HW)[None, None], shape, mode="bilinear")
    return (large_HW / large_HW.max().clamp_min(1e-30))[0, 0].numpy()


@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_b0", *OTHERS])
def test_equals_a_plain_implementation(architecture: str) -> None:
    layer = (POOLED_THEN_LINEAR | OTHERS)[architecture]
    model, image_HW = classifier(architecture), texture(1, 64, 64)
    for class_index in (0, 3):
        found_HW = grad_cam(model, image_HW, SQUARE, class_index)
        expected_HW = plain_grad_cam(model, layer, image_HW, class_index)
        np.testing.assert_allclose(found_HW, expected_HW, atol=1e-4)


@pytest.mark.parametrize("architecture", POOLED_THEN_LINEAR)
def test_is_the_class_activation_map_of_networks_that_pool_before_a_linear_head(
    architecture: str,
) -> None:
    """Selvaraju et al. 2017, section 3.1: Grad-CAM generalises CAM (Zhou et al. 2016)."""
    model, image_HW = classifier(architecture), texture(2, 64, 64)
    maps: list[Tensor] = []
    layer = model.backbone.get_submodule(POOLED_THEN_LINEAR[architecture])
    handle = layer.register_forward_hook(lambda *parts: maps.append(parts[2]))
    with torch.inference_mode():
        model(torch.tensor(image_HW)[None, None].float() / 255)
    handle.remove()
    maps_CHW = maps[0][0].double().numpy()
    for class_index, weights_C in enumerate(model.head.weight.detach().double().numpy()):
        cam_HW = np.maximum(np.tensordot(weights_C, maps_CHW, 1), 0)
        found_HW = grad_cam(model, image_HW, SQUARE, class_index)
        np.testing.assert_allclose(found_HW, scaled(cam_HW, (64, 64)), atol=1e-4)


@functools.cache
def quadrant_model() -> PlaneClassifier:
    """AlexNet whose last maps are the brightness near each place; class 1 likes it, 0 does not."""
    model = classifier("alexnet", classes=2)
    with torch.no_grad():
        for name, parameter in model.backbone.features.named_parameters():
            parameter.zero_()
            if name.endswith("weight"):
                parameter[0, 0] = 1 / parameter[0, 0].numel()
        model.mean.zero_()
        for name, parameter in model.backbone.classifier.named_parameters():
            parameter.fill_(0.001 if name.endswith("weight") else 0)
        model.head.weight[0], model.head.weight[1] = -1, 1
        model.head.bias.zero_()
    return model


@pytest.mark.parametrize("fit", ["letterbox", "squash"])
@pytest.mark.parametrize("shape", [(300, 300), (200, 500), (500, 200), (90, 130)])
@pytest.mark.parametrize("quadrant", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_finds_the_quadrant_that_decides(
    fit: str, shape: tuple[int, int], quadrant: tuple[int, int]
) -> None:
    image_HW = np.zeros(shape, np.uint8)
    rows, columns = (
        slice(half * side // 2, (half + 1) * side // 2)
        for half, side in zip(quadrant, shape, strict=True)
    )
    image_HW[rows, columns] = 255
    config = PreprocessConfig(size_px=256, fit=fit)
    heat_HW = grad_cam(quadrant_model(), image_HW, config, 1)
    assert heat_HW.shape == shape
    assert heat_HW.dtype == np.float32
    inside = heat_HW[rows, columns].mean()
    outside = heat_HW.sum() - heat_HW[rows, columns].sum()
    assert inside > 4 * outside / (heat_HW.size * 0.75)
    assert not grad_cam(quadrant_model(), image_HW, config, 0).any()


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(40, 400),
    width=st.integers(40, 400),
    at=st.tuples(st.floats(0.15, 0.85), st.floats(0.15, 0.85)),
    fit=st.sampled_from(["letterbox", "squash"]),
)
def test_heat_lies_over_the_spot_that_caused_it(
    height: int, width: int, at: tuple[float, float], fit: str
) -> None:
    """The spot's place in the input comes from ``preprocess`` itself."""
    spot = (int(at[0] * height), int(at[1] * width))
    image_HW = np.zeros((height, width), np.uint8)
    radius = max(height, width) // 16 + 1
    row_H1, column_1W = np.ogrid[:height, :width]
    image_HW[(row_H1 - spot[0]) ** 2 + (column_1W - spot[1]) ** 2 <= radius**2] = 255
    config = PreprocessConfig(size_px=256, fit=fit)
    assert preprocess(image_HW, config).max() > 100
    heat_HW = grad_cam(quadrant_model(), image_HW, config, 1).astype(np.float64)
    centre = [
        (heat_HW.sum(axis=1 - axis) * np.arange(heat_HW.shape[axis])).sum() / heat_HW.sum()
        for axis in (0, 1)
    ]
    # The feature map's cells are a sixteenth of the input's side.
    cell = [max(height, width) / 16] * 2 if fit == "letterbox" else [height / 16, width / 16]
    # Near an edge the middle of what is seen of the spot is not the spot's own.
    seen = [where.mean() for where in np.nonzero(image_HW)]
    assert abs(centre[0] - seen[0]) < 1.5 * cell[0]
    assert abs(centre[1] - seen[1]) < 1.5 * cell[1]


def test_no_class_means_the_most_probable_one() -> None:
    model, image_HW = classifier("resnet18"), texture(4, 64, 64)
    with torch.inference_mode():
        best = int(model(torch.tensor(image_HW)[None, None].float() / 255).argmax())
    maps = [grad_cam(model, image_HW, SQUARE, index) for index in range(4)]
    np.testing.assert_array_equal(grad_cam(model, image_HW, SQUARE), maps[best])
    assert not np.array_equal(maps[best], maps[(best + 1) % 4])


def test_leaves_the_model_as_it_was() -> None:
    model, image_HW = classifier("resnet18").train(), texture(5, 80, 60)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        first_HW = grad_cam(model, image_HW, SQUARE, 0)
    np.testing.assert_array_equal(first_HW, grad_cam(model, image_HW, SQUARE, 0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_threads_that_share_a_model_do_not_meet() -> None:
    model = classifier("resnet18")
    images = [texture(seed, 70, 50) for seed in range(8)]
    expected = [grad_cam(model, image_HW, SQUARE, 1) for image_HW in images]
    found: dict[int, NDArray[np.float32]] = {}

    def work(first: int) -> None:
        for index in range(first, len(images), 4):
            found[index] = grad_cam(model, images[index], SQUARE, 1)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(images)
    for index, heat_HW in found.items():
        np.testing.assert_allclose(heat_HW, expected[index], atol=1e-5)


@pytest.mark.parametrize("architecture", ["vit_b_32", "swin_t"])
def test_transformers_are_refused(architecture: str) -> None:
    with pytest.raises(ConfigError, match=rf"{architecture} cannot be explained.*resnet50"):
        grad_cam(classifier(architecture), texture(6, 224, 224), PreprocessConfig())


@pytest.mark.parametrize("class_index", [-1, 4])
def test_a_class_that_is_not_there_is_refused(class_index: int) -> None:
    with pytest.raises(ConfigError, match="has 4 classes"):
        grad_cam(classifier("resnet18"), texture(7, 64, 64), SQUARE, class_index)


def test_overlay_is_the_image_where_cold_and_coloured_where_hot() -> None:
    image_HW = texture(8, 150, 50)
    heat_HW = np.zeros((150, 50), np.float32)
    heat_HW[:, 25:] = 1
    with Image.open(io.BytesIO(overlay_png(image_HW, heat_HW))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (50, 150))
        pixels_HWC = np.asarray(picture).astype(float)
    np.testing.assert_array_equal(pixels_HWC[:, :25], np.stack([image_HW[:, :25]] * 3, axis=-1))
    hottest = np.array(list(bytes.fromhex(PALETTE[-1][1:])))
    expected_HWC = 0.3 * image_HW[:, 25:, None] + 0.7 * hottest
    np.testing.assert_allclose(pixels_HWC[:, 25:], expected_HWC, atol=0.51)


@pytest.mark.parametrize("sight", [np.eye(3), PROTAN, DEUTAN, TRITAN], ids=["all", "p", "d", "t"])
def test_lightness_rises_with_heat_for_every_kind_of_sight(sight: object) -> None:
    srgb = palette_table() / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(sight).T).clip(0, 1)
    lightness = 116 * np.cbrt(seen @ [0.2126, 0.7152, 0.0722]) - 16
    assert (np.diff(lightness) > 0).all()
    assert np.diff(lightness[::16]).min() > 2
    assert lightness[-1] - lightness[0] > 60
