"""What a training worker hears from the driver, through Ray."""

from __future__ import annotations

from typing import Any

import pytest
import ray
import ray.train.torch
import torch

from ray_jobs import ray_context
from ray_jobs.events import Mailbox
from ray_jobs.ray_context import RayContext

pytestmark = pytest.mark.ray


class OneWorker:
    """Of Ray Train's context what a rank asks for."""

    def get_world_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 1


def test_a_stop_is_noticed_after_the_step_in_which_it_came(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_context, "_STEP_EVENTS_S", 0.0)
    monkeypatch.setattr(ray.train, "get_context", OneWorker)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    actor: Any = ray.remote(num_cpus=0)(Mailbox)
    mailbox = actor.remote()
    context = RayContext(mailbox)
    for step in (1, 2, 3):
        context.emit({"kind": "step", "step": step})
        assert context.asked() is None
    ray.get(mailbox.ask_to_stop.remote())
    context.emit({"kind": "step", "step": 4})
    assert context.asked() == "stop"
    assert [event["step"] for event in ray.get(mailbox.take.remote())] == [1, 2, 3, 4]
    ray.kill(mailbox)
