"""Sends hostile requests to the application in this process and judges every answer."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image

from builders import toy_bundle
from fetal_core.bundle import Bundle
from fetal_core.image_limits import ImageLimits
from mutations import EXPLAIN, INFER, PREDICT, Hostile, hostile
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from ray_jobs.served import ServedModel
from serving_samples import ConstantEngine

SETTINGS = HttpSettings(
    limits=ImageLimits(max_bytes=2**20, max_pixels=1_000_000, max_frames=8),
    max_body_bytes=1_500_000,
    max_files=4,
    timeout_s=10,
    body_timeout_s=0.3,
)
ANSWERS = {200, 400, 404, 405, 408, 413, 415, 422}
"""Neither 5xx nor 429: requests come one by one, and none may take ``timeout_s``."""

_HANG_S = SETTINGS.timeout_s + 5
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Tally:
    """Answers by kind of request and status; 0 stands for none, as the client had left."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    start_bytes: int = 0
    warm_bytes: int = 0
    end_bytes: int = 0
    peak_bytes: int = 0

    @property
    def grown_mib(self) -> float:
        """Resident memory after all requests, less that after the first tenth."""
        return (self.end_bytes - self.warm_bytes) / 2**20

    @property
    def peak_mib(self) -> float:
        """Greatest resident memory, less that before the first request."""
        return (self.peak_bytes - self.start_bytes) / 2**20

    def table(self) -> str:
        """Counts, a line for each kind."""
        columns = sorted({status for found in self.statuses.values() for status in found})
        lines = [f"{'kind':14}" + "".join(f"{status or 'gone':>8}" for status in columns)]
        total: Counter[int] = Counter()
        for kind, found in sorted(self.statuses.items()):
            total += found
            lines.append(f"{kind:14}" + "".join(f"{found[status]:8}" for status in columns))
        lines.append(f"{'all':14}" + "".join(f"{total[status]:8}" for status in columns))
        memory = (self.start_bytes, self.warm_bytes, self.end_bytes, self.peak_bytes)
        shown = " / ".join(f"{size / 2**20:.0f}" for size in memory)
        return "\n".join(
            [*lines, f"resident MiB at first / after a tenth / at the end / at most: {shown}"]
        )


def cheap_model(folder: Path) -> ServedModel:
    """Decodes and explains as in service; only the scores are constant."""
    toy_bundle().save(str(folder))
    info = Bundle.load(str(folder)).info
    return ServedModel(ConstantEngine(), info, "toy", "1", str(folder))


async def run(app: FastAPI, inference: Inference, numbers: range) -> Tally:
    """Send the requests of these numbers one after another."""
    forget_peak()
    tally = Tally(start_bytes=resident_bytes())
    for done, number in enumerate(numbers):
        if done == len(numbers) // 10:
            tally.warm_bytes = resident_bytes()
        asked = hostile(number)
        try:
            async with asyncio.timeout(_HANG_S):
                status, headers, body = await ask(app, asked)
            faults = faults_of(asked, status, headers, body)
        except (Exception, asyncio.CancelledError) as error:
            status, faults = -1, [f"raised {error!r}"]
        if inference.pending:
            faults.append("it stays in the queue")
        tally.statuses.setdefault(asked.kind, Counter())[status] += 1
        tally.faults += [f"request {number} ({asked.kind}, {asked.path!r}): {x}" for x in faults]
    tally.end_bytes = resident_bytes()
    tally.peak_bytes = peak_bytes()
    return tally


def resident_bytes() -> int:
    """Memory of this process that is in use now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def forget_peak() -> None:
    """Measure `peak_bytes` from now on: earlier tests of this process may have needed more."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Greatest resident memory since `forget_peak` (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def ask(app: FastAPI, asked: Hostile) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status (0 if there is no answer), headers and body, without a client that mends requests."""
    left, sent = list(asked.chunks), []

    async def receive() -> Any:
        if left:
            chunk = left.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": _more(left, asked)}
        if asked.ending != "gone":
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(_scope(asked), receive, send)
    if not sent:
        return 0, {}, b""
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


def _more(left: list[bytes], asked: Hostile) -> bool:
    return bool(left) or asked.ending != "whole"


def _scope(asked: Hostile) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode("utf-8", "surrogateescape"),
        "query_string": asked.query,
        "root_path": "",
        "headers": asked.headers,
        "client": ("127.0.0.1", 1),
        "server": ("service", 80),
    }


def faults_of(asked: Hostile, status: int, headers: dict[bytes, bytes], body: bytes) -> list[str]:
    """What is wrong with an answer."""
    if status == 0:
        return [] if asked.ending == "gone" else ["no answer"]
    if status not in ANSWERS:
        return [f"status {status}: {body[:200]!r}"]
    faults = []
    if not re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", headers[b"x-request-id"]):
        faults.append("the identifier is not harmless")
    if headers[b"x-content-type-options"] != b"nosniff" or b"x-injected" in headers:
        faults.append("its headers are not as they should be")
    if re.search(rb'Traceback|File "|site-packages', body) and asked.path != "/docs":
        faults.append(f"it shows the inside: {body[:200]!r}")
    faults += _problem_faults(status, headers, body) if status >= 400 else []
    faults += _answer_faults(asked.path, body) if status == 200 else []
    return faults


def _problem_faults(status: int, headers: dict[bytes, bytes], body: bytes) -> list[str]:
    document = json.loads(body)
    match headers[b"content-type"]:
        case b"application/problem+json":
            good = document["status"] == status and document["detail"] and document["title"]
        case b"application/json":
            good = document["error"]
        case other:
            return [f"content type {other!r}"]
    return [] if good else [f"not a problem document: {body[:200]!r}"]


def _answer_faults(path: str, body: bytes) -> list[str]:
    if path == PREDICT:
        results = json.loads(body)["results"]
        sums = [sum(frame["probabilities"].values()) for one in results for frame in one["frames"]]
        return [] if sums and all(abs(one - 1) < 1e-3 for one in sums) else ["no probabilities"]
    if path == EXPLAIN:
        Image.open(io.BytesIO(body)).load()
    if path == INFER and not body.startswith(b'{"model_name": "toy"'):
        return ["not an answer of the protocol"]
    return []
