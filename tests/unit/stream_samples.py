"""A served stream, its client and engines that tests hold the reins of."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import websockets
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect

from builders import SIZE_PX, toy_bundle
from data_samples import encode, texture
from fetal_core.engine import Engine
from fetal_core.predict import Predictor
from live_server import serving, toy_model
from ray_jobs.http_settings import HttpSettings, StreamSettings
from ray_jobs.inference import Inference
from ray_jobs.stream import router
from ray_jobs.stream_messages import Frame

T = TypeVar("T")

BUNDLE = toy_bundle()
PREDICTOR = Predictor(BUNDLE)
FRAMES = [encode(texture(seed, 60, 90), "PNG") for seed in range(4)]
BLANK = encode(np.full((60, 90), 7, np.uint8), "PNG")
PATIENCE_S = 30


class Served:
    """A served stream and what is behind it."""

    def __init__(self, address: str, inference: Inference) -> None:
        self.uri = f"ws://{address}/v1/stream"
        self.inference = inference


def run(
    test: Callable[[Served], Coroutine[Any, Any, T]],
    engine: Engine | None = None,
    http: HttpSettings | None = None,
    make_app: Callable[[Inference, HttpSettings], FastAPI] | None = None,
    **limits: Any,
) -> T:
    """Run a test against a server of its own, by default with nothing but the stream."""
    http = (http or HttpSettings()).model_copy(update={"stream": StreamSettings(**limits)})
    inference = Inference(http, toy_model(BUNDLE, engine))
    if make_app is None:
        app = FastAPI()
        app.include_router(router(inference, http))
    else:
        app = make_app(inference, http)

    async def in_time(address: str) -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await test(Served(address, inference))

    try:
        with serving(app) as address:
            return asyncio.run(in_time(address))
    finally:
        inference.close()


async def receive(socket: ClientConnection) -> dict[str, Any]:
    found = json.loads(await socket.recv())
    assert isinstance(found, dict)
    return found


async def ask(socket: ClientConnection, message: bytes | dict[str, Any]) -> dict[str, Any]:
    await socket.send(message if isinstance(message, bytes) else json.dumps(message))
    return await receive(socket)


async def closed(socket: ClientConnection) -> tuple[int | None, list[dict[str, Any]]]:
    """The code by which the server closes, and its messages before."""
    messages = []
    try:
        while True:
            messages.append(await receive(socket))
    except websockets.ConnectionClosed:
        return socket.close_code, messages


class GatedEngine:
    """Waits for leave before each run, and tells when it has begun one."""

    name, size_px = "torch", SIZE_PX

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.leave = threading.Semaphore(0)

    def logits(self, images_NHW: np.ndarray) -> np.ndarray:
        self.begun.release()
        assert self.leave.acquire(timeout=PATIENCE_S)
        return PREDICTOR.logits(images_NHW)


class BrokenEngine:
    name, size_px = "torch", SIZE_PX

    def logits(self, images_NHW: np.ndarray) -> np.ndarray:
        raise RuntimeError("secret path")


class FixedEngine:
    """Gives one row of scores after the other."""

    name, size_px = "torch", SIZE_PX

    def __init__(self, rows_NK: np.ndarray) -> None:
        self._rows = iter(rows_NK.astype(np.float32))

    def logits(self, images_NHW: np.ndarray) -> np.ndarray:
        return np.stack([next(self._rows) for _ in images_NHW])


def begun(engine: GatedEngine) -> Awaitable[bool]:
    return asyncio.to_thread(engine.begun.acquire, timeout=PATIENCE_S)


async def eventually(condition: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + PATIENCE_S / 2
    while not condition() and time.monotonic() < end_s:
        await asyncio.sleep(0.01)
    return condition()


def frames_alive() -> list[Frame]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is Frame]


async def admitted(served: Served) -> bool:
    """Whether another stream may be opened, in the end."""
    for _ in range(200):
        async with connect(served.uri) as socket:
            with suppress(websockets.ConnectionClosed):
                if (await ask(socket, {"type": "ping"}))["type"] == "pong":
                    return True
        await asyncio.sleep(0.05)
    return False
