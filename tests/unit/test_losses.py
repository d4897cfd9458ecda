"""Losses against torch, scikit-learn and formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from fetal_core.config import parse
from fetal_core.errors import ConfigError
from fetal_core.losses import Loss, LossConfig, make_loss, mixup, one_hot, probabilities


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(5, (40,), generator=torch.Generator().manual_seed(1))


def test_cross_entropy_agrees_with_sklearn(logits: torch.Tensor, labels: torch.Tensor) -> None:
    losses = Loss("cross_entropy")(logits, one_hot(labels, 5))
    assert losses.shape == (40,)
    expected = log_loss(labels, logits.double().softmax(1), labels=range(5))
    assert losses.mean().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_smoothed_cross_entropy_agrees_with_torch(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float
) -> None:
    weights = (0.5, 1.0, 2.0, 3.0, 0.1)
    loss = make_loss(LossConfig(class_weights=weights, label_smoothing=smoothing), [1] * 5)
    expected = functional.cross_entropy(
        logits, labels, torch.tensor(weights), reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(loss(logits, one_hot(labels, 5, smoothing)), expected)


def test_binary_cross_entropy_is_the_mean_over_classes(
    logits: torch.Tensor, labels: torch.Tensor
) -> None:
    p = special.expit(logits.double().numpy())
    y = np.eye(5)[labels.numpy()]
    expected = -(y * np.log(p) + (1 - y) * np.log1p(-p)).mean(1)
    losses = Loss("binary_cross_entropy")(logits, one_hot(labels, 5))
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4)
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1])
    weighted = Loss("binary_cross_entropy", weights)(logits, one_hot(labels, 5))
    np.testing.assert_allclose(weighted.numpy(), expected * weights[labels].numpy(), rtol=1e-4)


def test_half_precision_logits_give_float32_losses(labels: torch.Tensor) -> None:
    logits = torch.full((40, 5), 8.0, dtype=torch.bfloat16)
    for name in ("cross_entropy", "binary_cross_entropy"):
        losses = Loss(name)(logits, one_hot(labels, 5))
        assert losses.dtype == torch.float32
        assert bool(losses.isfinite().all())


def test_balanced_weights_agree_with_sklearn(labels: torch.Tensor) -> None:
    counts = torch.bincount(labels, minlength=5).tolist()
    loss = make_loss(LossConfig(class_weights="balanced"), counts)
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels.numpy())
    assert loss.weights is not None
    np.testing.assert_allclose(loss.weights.numpy(), expected, rtol=1e-6)


def test_balanced_weights_name_all_empty_classes() -> None:
    config = LossConfig(class_weights="balanced")
    with pytest.raises(ConfigError, match="Fetal femur, Other"):
        make_loss(config, [5, 0, 0], ["Fetal brain", "Fetal femur", "Other"])


def test_a_wrong_number_of_weights_is_an_error() -> None:
    with pytest.raises(ConfigError, match="2 weights for 3 classes"):
        make_loss(LossConfig(class_weights=(1.0, 2.0)), [5, 5, 5])


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0], ["a"], "balance"])
def test_meaningless_weights_are_refused(weights: object) -> None:
    with pytest.raises(ConfigError, match="class_weights"):
        parse(LossConfig, {"class_weights": weights}, "test")


def test_smoothed_targets_sum_to_one(labels: torch.Tensor) -> None:
    targets = one_hot(labels, 5, 0.2)
    torch.testing.assert_close(targets.sum(1), torch.ones(40))
    torch.testing.assert_close(targets.amax(1), torch.full((40,), 0.84))
    assert torch.equal(targets.argmax(1), labels)


def test_probabilities_match_their_link(logits: torch.Tensor) -> None:
    softmax = special.softmax(logits.double().numpy(), axis=1)
    found = probabilities(logits, "cross_entropy")
    np.testing.assert_allclose(found.numpy(), softmax, rtol=1e-4)
    sigmoid = special.expit(logits.double().numpy())
    found = probabilities(logits, "binary_cross_entropy")
    np.testing.assert_allclose(found, sigmoid / sigmoid.sum(1, keepdims=True), rtol=1e-4)


def test_probabilities_survive_extreme_logits() -> None:
    logits = torch.tensor([[-200.0, -300.0], [200.0, 300.0]])
    found = probabilities(logits, "binary_cross_entropy")
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))


def test_mixup_pairs_images_and_labels_alike() -> None:
    labels = torch.arange(6)
    targets = one_hot(labels, 6)
    # Image i is lit at pixel i only, so that an image and its target must stay equal.
    images = targets.view(6, 1, 1, 6)
    mixed, soft = mixup(images, targets, 0.4, torch.Generator().manual_seed(2))
    torch.testing.assert_close(mixed.view(6, 6), soft)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert not torch.equal(soft, targets)
    again, _ = mixup(images, targets, 0.4, torch.Generator().manual_seed(2))
    assert torch.equal(mixed, again)


def test_mixup_coefficients_follow_beta() -> None:
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.eye(2)
    mixed = [mixup(images, targets, 0.2, generator)[0].flatten() for _ in range(3000)]
    swapped_or_not = torch.stack(mixed)[:, 0]
    # Unpaired batches give 0; half of the batches swap, and Beta(0.2, 0.2) has variance 1 / 5.6.
    coefficients = swapped_or_not[swapped_or_not > 0]
    assert coefficients.mean().item() == pytest.approx(0.5, abs=0.05)
    assert coefficients.var().item() == pytest.approx(1 / 5.6, abs=0.02)


def test_mixup_without_strength_returns_its_inputs() -> None:
    images, targets = torch.rand(3, 1, 4, 4), torch.eye(3)
    mixed = mixup(images, targets, 0.0, torch.Generator())
    assert mixed[0] is images
    assert mixed[1] is targets
