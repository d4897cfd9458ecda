"""What the training peers share: arguments, the clock of their steps and the line they print."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import psutil
import torch
from torch import nn
from torchvision.models import get_model

LINE = "FIGURES "
WORKERS = 2


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def arguments(precisions: tuple[str, ...]) -> argparse.Namespace:
    """Flags of a peer; compute threads are set to the cores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="a folder of images for each class")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="that count")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--precision", choices=precisions, default=precisions[0])
    torch.set_num_threads(cores())
    return parser.parse_args()


def processor_s(root: psutil.Process | None = None) -> float:
    """Processor time of a process and its descendants, this one's by default."""
    root = root or psutil.Process()
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def network(architecture: str, classes: int) -> nn.Module:
    """A network of torchvision with random weights."""
    model: nn.Module = get_model(architecture, weights=None, num_classes=classes)
    return model


class Clock:
    """Times the steps after the warm-up."""

    def __init__(self, batch: int, warm_up: int, steps: int) -> None:
        self.batch, self.warm_up, self.steps = batch, warm_up, steps
        self._ends_s: list[float] = []
        self._spent_s: list[float] = []

    def tick(self) -> bool:
        """After each step; True once all have been made."""
        self._ends_s.append(time.perf_counter())
        self._spent_s.append(processor_s())
        return len(self._ends_s) >= self.warm_up + self.steps

    def figures(self) -> dict[str, Any]:
        """Images a second, and processor time for each, from the end of the warm-up to the last."""
        ends_s = self._ends_s[self.warm_up - 1 :]
        counted = len(ends_s) - 1
        steps_s = [end - start for start, end in pairwise(ends_s)]
        return {
            "images_per_s": counted * self.batch / (ends_s[-1] - ends_s[0]),
            "cpu_s_per_image": (self._spent_s[-1] - self._spent_s[self.warm_up - 1])
            / (counted * self.batch),
            "steps": counted,
            "step_s": statistics.median(steps_s),
        }


def show(clock: Clock, *packages: str, **more: Any) -> None:
    """Print what the driver reads."""
    versions = {name: version(name) for name in ("torch", "torchvision", *packages)}
    print(LINE + json.dumps(clock.figures() | more | {"versions": versions}), flush=True)
