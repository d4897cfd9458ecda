"""Predictions from bytes agree with a plain forward pass."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from builders import CLASSES, SIZE_PX, toy_bundle
from data_samples import encode, texture
from fetal_core.bundle import Bundle
from fetal_core.errors import ImageError
from fetal_core.images import ImageLimits, decode
from fetal_core.predict import Predictor
from fetal_core.preprocess import PreprocessConfig, preprocess

IMAGE = texture(5, 60, 90)


def plain_logits(bundle: Bundle, image_HW: np.ndarray) -> np.ndarray:
    """Logits of one image, written out without the code under test."""
    small_HW = preprocess(image_HW, PreprocessConfig(size_px=SIZE_PX))
    grey = torch.tensor(small_HW, dtype=torch.float32)[None, None] / 255
    rgb = ((grey - 0.25) / 0.2).repeat(1, 3, 1, 1)
    model = bundle.model
    with torch.inference_mode():
        logits_K = model.backbone(rgb) @ model.head.weight.T + model.head.bias
    return logits_K[0].double().numpy()


def tiff(frames: list[np.ndarray]) -> bytes:
    pages, buffer = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def test_probabilities_are_those_of_a_plain_forward_pass() -> None:
    bundle = toy_bundle()
    found = Predictor(bundle).predict_bytes(encode(IMAGE))
    expected_K = softmax(plain_logits(bundle, IMAGE) / 2)
    assert len(found) == 1
    assert list(found[0].probabilities) == list(CLASSES)
    np.testing.assert_allclose(list(found[0].probabilities.values()), expected_K, atol=1e-5)
    assert found[0].plane == CLASSES[int(expected_K.argmax())]
    assert found[0].confidence == pytest.approx(expected_K.max(), abs=1e-5)
    assert found[0].confidence == max(found[0].probabilities.values())


def test_temperature_divides_the_logits() -> None:
    results = {}
    for temperature in (0.5, 1.0, 2.0, 10.0):
        bundle = toy_bundle(temperature=temperature)
        probabilities = Predictor(bundle).predict_bytes(encode(IMAGE))[0].probabilities
        expected_K = softmax(plain_logits(bundle, IMAGE) / temperature)
        np.testing.assert_allclose(list(probabilities.values()), expected_K, atol=1e-5)
        results[temperature] = max(probabilities.values())
    assert results[0.5] > results[1.0] > results[2.0] > results[10.0]


def test_sigmoid_models_give_sigmoids_divided_by_their_sum() -> None:
    bundle = toy_bundle(loss="binary_cross_entropy", temperature=1.0)
    found = Predictor(bundle).predict_bytes(encode(IMAGE))[0]
    sigmoid_K = 1 / (1 + np.exp(-plain_logits(bundle, IMAGE)))
    np.testing.assert_allclose(
        list(found.probabilities.values()), sigmoid_K / sigmoid_K.sum(), atol=1e-5
    )


def test_threshold_decides_between_acceptance_and_review() -> None:
    data = encode(IMAGE)
    confidence = Predictor(toy_bundle()).predict_bytes(data)[0].confidence
    for threshold, decision in (
        (confidence, "accept"),
        (confidence - 0.01, "accept"),
        (confidence + 1e-6, "review"),
        (None, "review"),
    ):
        found = Predictor(toy_bundle(threshold=threshold)).predict_bytes(data)[0]
        assert found.decision == decision


def test_every_frame_of_a_tiff_gets_its_own_answer() -> None:
    frames = [texture(seed, 50 + seed, 70) for seed in range(5)]
    predictor = Predictor(toy_bundle())
    found = predictor.predict_bytes(tiff(frames))
    assert [prediction.frame for prediction in found] == [0, 1, 2, 3, 4]
    for prediction, frame in zip(found, frames, strict=True):
        alone = predictor.predict_bytes(encode(frame))[0]
        assert prediction.plane == alone.plane
        assert prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
    assert len({prediction.confidence for prediction in found}) == 5


def test_a_batch_of_images_of_any_size_gives_the_answers_of_each() -> None:
    images = [texture(1, 40, 90), texture(2, 200, 30), texture(3, SIZE_PX, SIZE_PX)]
    predictor = Predictor(toy_bundle())
    together = predictor.predict(images)
    for number, (image_HW, found) in enumerate(zip(images, together, strict=True)):
        alone = predictor.predict([image_HW])[0]
        assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert found.frame == number


def test_jpeg_and_png_of_the_same_pixels_agree() -> None:
    jpeg = encode(IMAGE, "JPEG", quality=90)
    predictor = Predictor(toy_bundle())
    same = predictor.predict_bytes(encode(decode(jpeg)))[0]
    assert predictor.predict_bytes(jpeg)[0] == same


def test_logits_of_a_batch_have_its_shape_and_type() -> None:
    logits_NK = Predictor(toy_bundle()).logits(np.zeros((3, SIZE_PX, SIZE_PX), np.uint8))
    assert logits_NK.shape == (3, 4)
    assert logits_NK.dtype == np.float32


def test_answers_survive_saving_and_loading(tmp_path: Path) -> None:
    bundle = toy_bundle()
    bundle.save(str(tmp_path))
    before = Predictor(bundle).predict_bytes(encode(IMAGE))[0]
    after = Predictor(Bundle.load(str(tmp_path))).predict_bytes(encode(IMAGE))[0]
    assert after.plane == before.plane
    assert after.probabilities == pytest.approx(before.probabilities, abs=1e-6)


def test_unusable_bytes_and_limits_are_image_errors() -> None:
    with pytest.raises(ImageError) as caught:
        Predictor(toy_bundle()).predict_bytes(b"not an image")
    assert caught.value.kind == "not-an-image"
    strict = Predictor(toy_bundle(), ImageLimits(max_pixels=1000))
    with pytest.raises(ImageError) as caught:
        strict.predict_bytes(encode(IMAGE))
    assert caught.value.kind == "too-large"
