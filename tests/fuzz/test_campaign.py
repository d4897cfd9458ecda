"""Mutated requests: ``FETAL_FUZZ_INPUTS`` of them, by default as many as take half a minute."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from campaign import SETTINGS, cheap_model, run
from mutations import KINDS, hostile
from ray_jobs.http_api import create_app
from ray_jobs.inference import Inference
from seeds import CANARY

INPUTS = int(os.environ.get("FETAL_FUZZ_INPUTS", "5000"))
FIRST = int(os.environ.get("FETAL_FUZZ_FIRST", "0"))
GROWTH_MIB = 200  # what the allocator keeps for the next request included
PEAK_MIB = 400


class Kept(logging.Handler):
    """Keeps what the service logs, and the warnings of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.strange: list[str] = []
        self.lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        ours = record.name == "ray_jobs.http_gateway" and record.levelno == logging.INFO
        self.lines += ours
        strange = not ours and record.levelno >= logging.WARNING
        if strange or CANARY in text or "\n" in text or record.exc_info:
            self.strange.append(f"{record.name}: {text[:300]}")


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler, ours = Kept(), logging.getLogger("ray_jobs")
    loggers = (ours, logging.getLogger())
    for logger in loggers:
        logger.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    ours.propagate = False  # pytest would keep every line in memory
    yield handler
    ours.propagate = True
    ours.setLevel(logging.NOTSET)
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[FastAPI, Inference]]:
    inference = Inference(SETTINGS, cheap_model(tmp_path))
    yield create_app(inference, SETTINGS), inference
    inference.close()


@pytest.mark.timeout(7200)
def test_hostile_requests_are_answered(
    service: tuple[FastAPI, Inference], kept: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    """No 5xx, no hang, bounded memory, nothing of the input in logs or on the terminal."""
    tally = asyncio.run(run(*service, range(FIRST, FIRST + INPUTS)))
    written = capfd.readouterr()
    with capfd.disabled():
        print(f"\n{INPUTS} requests from number {FIRST}\n{tally.table()}")  # noqa: T201
    assert tally.faults[:20] == []
    assert kept.strange[:20] == []
    assert kept.lines == INPUTS
    assert CANARY not in written.out + written.err
    assert tally.grown_mib < GROWTH_MIB
    assert tally.peak_mib < PEAK_MIB


def test_requests_are_the_same_in_every_run() -> None:
    assert [hostile(number) for number in range(50)] == [hostile(number) for number in range(50)]


def test_the_requests_cover_all_kinds() -> None:
    assert {hostile(number).kind for number in range(1000)} == set(KINDS)
