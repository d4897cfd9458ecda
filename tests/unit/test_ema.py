"""The moving average of weights against a loop over numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fetal_core.ema import Ema
from fetal_core.errors import ModelError


def set_weight(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_average_follows_the_recurrence_with_warm_up() -> None:
    model = small_model()
    set_weight(model, 1.0)
    ema = Ema(model, decay=0.3)
    expected = 1.0
    for n, value in enumerate([4.0, -2.0, 7.0, 0.5, 3.0]):
        set_weight(model, value)
        ema.update(model)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    with ema.applied_to(model):
        for parameter in model.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_buffers_are_averaged_and_counters_copied() -> None:
    model = small_model()
    ema = Ema(model, decay=0.999)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean += 10
    norm.num_batches_tracked += 7
    ema.update(model)
    average = ema.state_dict()["average"]
    torch.testing.assert_close(average["1.running_mean"], torch.full((3,), 9.0))
    assert average["1.num_batches_tracked"] == 7


def test_own_weights_return_even_after_an_error() -> None:
    model = small_model()
    ema = Ema(model, decay=0.9)
    weight = model[0].weight
    set_weight(model, 5.0)
    with ema.applied_to(model):
        assert not torch.equal(model[0].weight, torch.full((3, 2), 5.0))
    with pytest.raises(RuntimeError, match="shape"), ema.applied_to(model):
        model(torch.zeros(1, 9))
    assert torch.equal(model[0].weight, torch.full((3, 2), 5.0))
    assert model[0].weight is weight


def test_a_resumed_average_continues_alike() -> None:
    model, values = small_model(), [1.0, 3.0, -4.0, 2.0]
    whole = Ema(model, decay=0.9)
    first = Ema(model, decay=0.9)
    for value in values[:2]:
        set_weight(model, value)
        whole.update(model)
        first.update(model)
    second = Ema(small_model(), decay=0.9)
    second.load_state_dict(first.state_dict())
    for value in values[2:]:
        set_weight(model, value)
        whole.update(model)
        second.update(model)
    for name, value in whole.state_dict()["average"].items():
        assert torch.equal(value, second.state_dict()["average"][name])


def test_the_average_of_another_model_is_refused() -> None:
    state = Ema(nn.Linear(2, 4), decay=0.9).state_dict()
    with pytest.raises(ModelError, match="another model"):
        Ema(nn.Linear(2, 3), decay=0.9).load_state_dict(state)
