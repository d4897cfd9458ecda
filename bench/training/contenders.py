"""Who is measured, and one turn of one of them in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.training.common import LINE
from bench.training.data import ROOT, Cohort

CEILING, OURS, PROBE = "ceiling", "fetal train", "fetal train, probe"
FP32, BF16 = "PyTorch fp32", "PyTorch bf16"
BF16_LAST = "PyTorch bf16, channels last"
LIGHTNING, FASTAI = "Lightning bf16-mixed", "fastai to_bf16"
ORIGINAL, ORIGINAL_FP32 = "fetal train, original", "PyTorch fp32, original"
AT_BF16 = (BF16, BF16_LAST, LIGHTNING)

_QUIET = {"DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore"}
_PROBE_EPOCHS = 5
_GRACE_S = 30
_SGD = ("--optim.name", "sgd", "--optim.lr", "0.01", "--optim.momentum", "0.9")
_ORIGINAL_AUGMENT = (
    *("--augment.vertical-flip", "0.5", "--augment.rotation-deg", "30", "--augment.crop", "0.2"),
    *("--augment.brightness", "0", "--augment.contrast", "0"),
    *("--augment.gain", "0", "--augment.speckle", "0"),
)


@dataclass(frozen=True)
class Size:
    """How much a turn computes.

    Attributes:
        steps: of the ceiling and the peers, after one step to warm up.
        images: that ours takes in an epoch.
        epochs: of ours, of which the first does not count.
    """

    architecture: str
    size_px: int
    batch: int
    steps: int
    images: int
    epochs: int


@dataclass(frozen=True)
class Contender:
    """A command that prints its figures."""

    name: str
    command: tuple[str, ...]


def contenders(cohort: Cohort, size: Size, peers: str | None) -> list[Contender]:
    """The ceiling, ours, its probe mode, and the peers where there is an environment for them."""
    limit = (sys.executable, "-m", "bench.training.ceiling", "-", *_of(size))
    probe = _ours(cohort, replace(size, epochs=_PROBE_EPOCHS))
    found = [
        Contender(CEILING, limit),
        Contender(OURS, _ours(cohort, size)),
        Contender(PROBE, (*probe, "--train.mode", "probe")),
    ]
    if peers is not None:
        for name, module, precision in (
            (FP32, "peer_torch", "fp32"),
            (BF16, "peer_torch", "bf16"),
            (BF16_LAST, "peer_torch", "bf16-channels-last"),
            (LIGHTNING, "peer_lightning", "bf16-mixed"),
            (FASTAI, "peer_fastai", "bf16"),
        ):
            found.append(Contender(name, _peer(peers, module, precision, cohort, size)))
    return found


def originals(cohort: Cohort, size: Size, python: str) -> list[Contender]:
    """The original recipe's shape: ours in the processor's best format, and plain float32."""
    return [
        Contender(ORIGINAL, (*_ours(cohort, size), *_ORIGINAL_AUGMENT)),
        Contender(ORIGINAL_FP32, _peer(python, "peer_torch", "fp32", cohort, size)),
    ]


def turn(contender: Contender, prefix: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """The contender's figures, or ``error`` with the end of what it said."""
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        words = [word.replace("{runs}", folder) for word in contender.command]
        process = subprocess.Popen(
            [*prefix, *words],
            cwd=ROOT,
            env=os.environ | _QUIET | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, said = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return {"error": f"not done after {timeout_s:g} s"}
    _, mark, line = output.rpartition(LINE)
    if process.returncode or not mark:
        lines = (said.strip() or output.strip()).splitlines()
        return {"error": lines[-1] if lines else f"exit code {process.returncode}"}
    figures: dict[str, Any] = json.loads(line.splitlines()[0])
    return figures


def _end(process: subprocess.Popen[str]) -> None:
    """In order if it will, so that it takes its own processes along."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.communicate(timeout=_GRACE_S)
            return
        except subprocess.TimeoutExpired:
            continue


def _of(size: Size) -> tuple[str, ...]:
    return (
        *("--architecture", size.architecture, "--size-px", str(size.size_px)),
        *("--batch", str(size.batch), "--steps", str(size.steps)),
    )


def _peer(python: str, module: str, precision: str, cohort: Cohort, size: Size) -> tuple[str, ...]:
    command = (python, "-m", f"bench.training.{module}", str(cohort.classes))
    return (*command, *_of(size), "--precision", precision)


def _ours(cohort: Cohort, size: Size) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "bench.training.ours", str(cohort.prepared), "--runs", "{runs}"),
        *("--model.architecture", size.architecture, "--model.weights", "none", *_SGD),
        *("--train.batch-size", str(size.batch), "--train.epochs", str(size.epochs)),
        *("--train.max-train-images", str(size.images), "--train.max-val-images", "8"),
    )
