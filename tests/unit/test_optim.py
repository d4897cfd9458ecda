"""Optimizers and schedules against values computed by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from fetal_core.config import parse
from fetal_core.errors import ConfigError
from fetal_core.model import ModelConfig, build, freeze
from fetal_core.optim import (
    OptimConfig,
    Schedule,
    ScheduleConfig,
    l2_penalty,
    make_optimizer,
    make_schedule,
    parameter_groups,
    scale_lr,
)


def classifier() -> nn.Module:
    return build(ModelConfig(architecture="resnet18", weights="none"), 4, 0.2, 0.1, 0, 64)


def schedule_of(
    config: ScheduleConfig, epochs: int, steps: int, lr: float = 1.0
) -> tuple[Schedule, torch.optim.Optimizer]:
    optimizer = make_optimizer(nn.Linear(2, 2), OptimConfig(lr=lr))
    schedule = make_schedule(optimizer, config, epochs, steps)
    optimizer.step()
    return schedule, optimizer


def rates(config: ScheduleConfig, epochs: int, steps: int, lr: float = 1.0) -> list[float]:
    """The learning rate of every optimizer step."""
    schedule, _ = schedule_of(config, epochs, steps, lr)
    found = []
    for _ in range(epochs):
        for _ in range(steps):
            found.append(schedule.lr)
            schedule.step_batch()
        schedule.step_epoch(val_loss=1.0)
    return [*found, schedule.lr]


def test_groups_hold_every_parameter_once_and_decay_only_kernels() -> None:
    model = classifier()
    groups = parameter_groups(model, OptimConfig(lr=0.1, weight_decay=0.5, backbone_lr_scale=0.1))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    kernels = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert decaying == kernels
    assert [group["name"] for group in groups] == [
        "head",
        "head, no decay",
        "backbone",
        "backbone, no decay",
    ]
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_position_bias_tables_do_not_decay() -> None:
    config = ModelConfig(architecture="swin_t", weights="none")
    model = build(config, 4, 0.2, 0.1, 0, 64)
    tables = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name.endswith("relative_position_bias_table")
    }
    still = {
        id(parameter)
        for group in parameter_groups(model, OptimConfig())
        if not group["weight_decay"]
        for parameter in group["params"]
    }
    assert tables
    assert tables <= still


def test_frozen_parameters_are_left_out() -> None:
    model = classifier()
    freeze(model.get_submodule("backbone"))
    groups = parameter_groups(model, OptimConfig())
    assert sum(parameter.numel() for group in groups for parameter in group["params"]) == 4 * 513


def test_weight_decay_shrinks_kernels_alone() -> None:
    linear = nn.Linear(3, 3)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    optimizer = make_optimizer(linear, OptimConfig(lr=0.1, momentum=0, weight_decay=0.5), 2.0)
    linear(torch.zeros(1, 3)).sum().mul(0).backward()
    optimizer.step()
    torch.testing.assert_close(linear.weight, weight * (1 - 0.2 * 0.5))
    assert torch.equal(linear.bias, bias)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_optimizer_lowers_a_convex_loss(name: str) -> None:
    images, labels = make_blobs(60, 5, centers=3, random_state=0)
    features, targets = torch.tensor(images).float(), torch.tensor(labels)
    linear = nn.Linear(5, 3)
    optimizer = make_optimizer(linear, parse(OptimConfig, {"name": name}, "test"))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = functional.cross_entropy(linear(features), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_lbfgs_with_the_penalty_reaches_sklearns_optimum() -> None:
    points, labels = make_blobs(90, 6, centers=3, cluster_std=8.0, random_state=1)
    decay = 0.02
    expected = LogisticRegression(C=1 / (decay * 90), tol=1e-10, max_iter=5000).fit(points, labels)
    features, targets = torch.tensor(points).float(), torch.tensor(labels)
    linear = nn.Linear(6, 3)
    optimizer = make_optimizer(linear, OptimConfig(name="lbfgs", weight_decay=decay))

    def closure() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(linear(features), targets) + l2_penalty(linear, decay)
        loss.backward()
        return loss.item()

    for _ in range(5):
        optimizer.step(closure)
    np.testing.assert_allclose(linear.weight.detach(), expected.coef_, atol=1e-3)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match="nesterov"):
        parse(OptimConfig, {"nesterov": True, "momentum": 0.0}, "test")


def test_step_decay_is_that_of_the_original() -> None:
    found = rates(ScheduleConfig(name="step"), epochs=10, steps=5, lr=0.01)
    expected = [0.01 * 0.8 ** (epoch // 2) for epoch in range(10) for _ in range(5)]
    assert found[:-1] == pytest.approx(expected)


def test_plateau_falls_after_patience_is_exceeded() -> None:
    config = ScheduleConfig(name="plateau")
    schedule, _ = schedule_of(config, epochs=12, steps=2, lr=0.01)
    val_losses = [1.0, 0.5, 0.6, 0.7, 0.5, 0.8, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9]
    found = []
    for val_loss in val_losses:
        schedule.step_batch()
        schedule.step_batch()
        schedule.step_epoch(val_loss)
        found.append(schedule.lr)
    # Best 0.5 in epoch 2, then four epochs without improvement; best 0.4 in epoch 7, then four.
    assert found == pytest.approx([0.01] * 5 + [0.002] * 5 + [0.0004] * 2)


def test_cosine_starts_at_the_rate_and_ends_at_its_fraction() -> None:
    found = rates(ScheduleConfig(name="cosine", min_lr_fraction=0.1), epochs=4, steps=5, lr=2.0)
    assert found[0] == pytest.approx(2.0)
    assert found[10] == pytest.approx(1.1)
    assert found[20] == pytest.approx(0.2)
    optimizer = make_optimizer(nn.Linear(2, 2), OptimConfig(lr=2.0))
    reference = CosineAnnealingLR(optimizer, T_max=20, eta_min=0.2)
    for rate in found:
        assert rate == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("name", ["constant", "plateau", "step", "cosine"])
def test_warm_up_rises_in_equal_steps_to_the_rate(name: str) -> None:
    values = {"name": name, "warmup_epochs": 1.5, "step_epochs": 4}
    found = rates(parse(ScheduleConfig, values, "test"), epochs=4, steps=4, lr=0.6)
    assert found[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert max(found) == pytest.approx(0.6)


def test_cosine_after_warm_up_ends_at_its_fraction() -> None:
    config = ScheduleConfig(name="cosine", warmup_epochs=2, min_lr_fraction=0.01)
    found = rates(config, epochs=6, steps=3)
    assert found[12] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2)
    assert found[-1] == pytest.approx(0.01)


def test_constant_stays() -> None:
    assert set(rates(ScheduleConfig(name="constant"), epochs=3, steps=2, lr=0.3)) == {0.3}


def test_a_warm_up_longer_than_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_epochs"):
        schedule_of(ScheduleConfig(warmup_epochs=3), epochs=2, steps=4)


def test_group_ratios_are_kept() -> None:
    model = classifier()
    optimizer = make_optimizer(model, OptimConfig(lr=1.0, backbone_lr_scale=0.1))
    schedule = make_schedule(optimizer, ScheduleConfig(name="cosine", warmup_epochs=1), 3, 4)
    optimizer.step()
    for _ in range(10):
        schedule.step_batch()
        lrs = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert lrs["backbone"] == pytest.approx(0.1 * lrs["head"])
        assert schedule.lr == lrs["head"]


@pytest.mark.parametrize("name", ["constant", "plateau", "step", "cosine"])
@pytest.mark.parametrize("interrupted_after", [1, 2, 5])
def test_a_resumed_schedule_gives_the_same_rates(name: str, interrupted_after: int) -> None:
    config = parse(ScheduleConfig, {"name": name, "warmup_epochs": 2, "patience": 0}, "test")
    val_losses = [3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 0.9]

    def epochs(schedule: Schedule, losses: list[float]) -> list[float]:
        found = []
        for val_loss in losses:
            for _ in range(3):
                found.append(schedule.lr)
                schedule.step_batch()
            schedule.step_epoch(val_loss)
        return found

    whole = epochs(schedule_of(config, 8, 3)[0], val_losses)
    first, optimizer = schedule_of(config, 8, 3)
    before = epochs(first, val_losses[:interrupted_after])
    second, resumed_optimizer = schedule_of(config, 8, 3)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    second.load_state_dict(first.state_dict(), 3 * interrupted_after)
    assert before + epochs(second, val_losses[interrupted_after:]) == pytest.approx(whole)


def test_rates_scale_with_the_batch() -> None:
    assert scale_lr(0.01, "sgd", 256, 8) == pytest.approx(0.32)
    assert scale_lr(0.01, "adam", 128, 32) == pytest.approx(0.02)
    assert scale_lr(0.01, "adamw", 128, 32) == pytest.approx(0.02)
    assert scale_lr(0.01, "sgd", 8, 8) == 0.01


@pytest.mark.parametrize("name", ["plateau", "constant"])
def test_a_schedule_resumed_at_another_rate_goes_on_in_proportion(name: str) -> None:
    config = parse(ScheduleConfig, {"name": name, "patience": 0, "factor": 0.5}, "test")
    first, _ = schedule_of(config, epochs=4, steps=1, lr=0.8)
    for _ in range(2):
        first.step_batch()
        first.step_epoch(1.0)
    later, _ = schedule_of(config, epochs=4, steps=1, lr=0.2)
    later.load_state_dict(first.state_dict(), 2)
    assert later.lr == pytest.approx(first.lr / 4)


def test_a_plateau_goes_on_with_settings_of_its_own() -> None:
    first, _ = schedule_of(ScheduleConfig(name="plateau", patience=3, factor=0.2), 6, 1, lr=0.8)
    for _ in range(3):
        first.step_epoch(1.0)
    later, _ = schedule_of(ScheduleConfig(name="plateau", patience=2, factor=0.5), 6, 1, lr=0.8)
    later.load_state_dict(first.state_dict(), 3)
    later.step_epoch(1.0)
    assert later.lr == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_epochs_of_other_lengths_go_on_where_they_are(name: str) -> None:
    config = parse(ScheduleConfig, {"name": name, "warmup_epochs": 1}, "test")
    first, _ = schedule_of(config, epochs=10, steps=8)
    later, _ = schedule_of(config, epochs=10, steps=4)
    for _ in range(5 * 8):
        first.step_batch()
    later.load_state_dict(first.state_dict(), 5 * 4)
    assert later.lr == pytest.approx(first.lr)
    later.step_batch()
    first.step_batch()
    first.step_batch()
    assert later.lr == pytest.approx(first.lr)
