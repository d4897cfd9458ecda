"""A live scan over a WebSocket: frames in, steady decisions out; the newest frame wins.

The client sends encoded images as binary messages, and control messages as JSON text:
``{"type": "config", "alpha": 0.5, "switch_odds": 2}``, ``{"type": "reset"}`` at the start of
another scan, ``{"type": "ping"}``. The server answers each frame that it has time for by a
``result`` or an ``error``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from fetal_core.api_keys import RELOAD_S
from fetal_core.config import parse
from fetal_core.errors import ConfigError, ImageError
from fetal_core.images import probe
from fetal_core.smoothing import SmoothingConfig
from ray_jobs.http_gateway import authorise_again
from ray_jobs.http_settings import HttpSettings, StreamSettings
from ray_jobs.inference import FileAnswer, Inference
from ray_jobs.problems import ProblemError, problem_of
from ray_jobs.stream_messages import (
    POLICY,
    SERVER_FAULT,
    TOO_BIG,
    TRY_LATER,
    ClosingError,
    Frame,
    Shown,
    follow,
    not_control,
    read_control,
    result,
)

logger = logging.getLogger(__name__)

SUBPROTOCOL = "fetal.stream.v1"
"""Accepted where the client offers it: browsers that send a key as a subprotocol need an answer."""

_CONTROL_BYTES = 4096


def router(inference: Inference, settings: HttpSettings) -> APIRouter:
    """The route ``WS /v1/stream``; keys are checked before it, at the handshake, and again."""
    routes = APIRouter()
    limits = settings.stream
    open_streams: set[_Stream] = set()

    @routes.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        current = _Stream(socket, inference, limits)
        if not settings.require_key and not _same_origin(socket):
            await current.close(_foreign())
        elif len(open_streams) >= limits.max_streams:
            await current.close(_too_many(limits.max_streams))
        else:
            open_streams.add(current)
            try:
                await current.run()
            finally:
                open_streams.remove(current)

    return routes


class _Newest:
    """Room for one waiting frame, which a newer one pushes out."""

    def __init__(self) -> None:
        self._frame: Frame | None = None
        self._there = asyncio.Event()
        self._dropped = 0

    def put(self, frame: Frame) -> None:
        self._dropped += self._frame is not None
        self._frame = frame
        self._there.set()

    async def take(self) -> tuple[Frame, int]:
        """The waiting frame, and how many were pushed out since the last one taken."""
        await self._there.wait()
        assert self._frame is not None
        taken = self._frame, self._dropped
        self._frame, self._dropped = None, 0
        self._there.clear()
        return taken


class _Stream:
    """One connection: tasks that receive, answer the newest frame and look after the key."""

    def __init__(self, socket: WebSocket, inference: Inference, limits: StreamSettings) -> None:
        self._socket = socket
        self._inference = inference
        self._limits = limits
        self._newest = _Newest()
        self._sending = asyncio.Lock()
        self._smoothing = SmoothingConfig()
        self._frames = 0
        self._scan = 0

    async def run(self) -> None:
        """Serve until one side ends it."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive())
                group.create_task(self._answer())
                group.create_task(self._watch_key())
        except* WebSocketDisconnect:
            pass
        except* ClosingError as closings:
            first = closings.exceptions[0]
            if isinstance(first, ClosingError):
                await self.close(first)

    async def close(self, closing: ClosingError) -> None:
        """Say why, and close; a client that takes no answer is left alone."""
        try:
            await self._send_error(closing.problem)
            async with asyncio.timeout(self._limits.send_s):
                await self._socket.close(closing.code, closing.problem.kind)
        except (WebSocketDisconnect, TimeoutError, RuntimeError):
            pass

    async def _receive(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_s):
                    message = await self._socket.receive()
            except TimeoutError:
                detail = f"No message came for {self._limits.idle_s:g} s."
                raise ClosingError(POLICY, ProblemError(408, "idle", detail)) from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            data, text = message.get("bytes"), message.get("text")
            _check_size(data if data is not None else text, data is not None, self._limits)
            if data is not None:
                self._newest.put(Frame(self._frames, data, self._scan, self._smoothing))
                self._frames += 1
            else:
                await self._control(read_control(text))

    async def _control(self, message: dict[str, Any]) -> None:
        match message.pop("type", None):
            case "config":
                try:
                    self._smoothing = parse(SmoothingConfig, message, "config")
                except ConfigError as error:
                    await self._send_error(ProblemError(422, "malformed-request", str(error)))
                else:
                    await self._send({"type": "config", **self._smoothing.model_dump()})
            case "reset":
                self._scan += 1
                await self._send({"type": "reset"})
            case "ping":
                await self._send({"type": "pong"})
            case _:
                raise not_control("its type must be config, reset or ping")

    async def _answer(self) -> None:
        shown: Shown | None = None
        while True:
            frame, dropped = await self._newest.take()
            try:
                answer = await self._predict(frame.data)
            except Exception as error:
                await self._refuse(error, frame.number, dropped)
                continue
            shown = follow(shown, frame, answer)
            await self._send(result(frame.number, dropped, answer, shown))

    async def _watch_key(self) -> None:
        """End the stream when its key is revoked or expires."""
        while True:
            await asyncio.sleep(RELOAD_S)
            try:
                await authorise_again(self._socket.scope)
            except ProblemError as problem:
                raise ClosingError(POLICY, problem) from None

    async def _predict(self, data: bytes) -> FileAnswer:
        info = await asyncio.to_thread(probe, data, self._inference.settings.limits)
        if info.frames > 1:
            reason = f"the file has {info.frames} frames"
            raise ImageError("multi-frame", reason, "Send each frame as a message of its own")
        return await self._inference.predict(data)

    async def _refuse(self, error: Exception, number: int, dropped: int) -> None:
        """Tell the client about a frame without an answer; a fault of ours ends the stream."""
        problem = problem_of(error)
        if problem.status == 500:
            logger.error("stream failed: %s", type(error).__name__)
            raise ClosingError(SERVER_FAULT, problem) from None
        await self._send_error(problem, {"frame": number, "dropped": dropped})

    async def _send_error(self, problem: ProblemError, about: dict[str, int] | None = None) -> None:
        request_id = self._socket.scope.get("state", {}).get("request_id", "stream")
        document = json.loads(bytes(problem.response(request_id).body))
        await self._send({"type": "error", "problem": document, **(about or {})})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._limits.send_s), self._sending:
                await self._socket.send_text(json.dumps(message))
        except TimeoutError:
            raise WebSocketDisconnect(1006, "the client takes no answers") from None
        except RuntimeError:
            # The server has closed the connection itself, such as after a ping without a pong.
            raise WebSocketDisconnect(1006, "the connection was closed") from None


def _same_origin(socket: WebSocket) -> bool:
    """Whether a browser's page comes from this service; other clients name no origin.

    A page of any site may open a WebSocket to this machine: without keys, nothing else stops it.
    """
    origin = socket.headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == socket.headers.get("host", "").lower()
    except ValueError:
        return False


def _check_size(message: bytes | str | None, binary: bool, limits: StreamSettings) -> None:
    limit = limits.max_frame_bytes if binary else _CONTROL_BYTES
    if message is not None and len(message) > limit:
        detail = f"The message has {len(message):,} bytes, more than the limit of {limit:,}."
        raise ClosingError(TOO_BIG, ProblemError(413, "too-large", detail))


def _foreign() -> ClosingError:
    detail = "Without API keys, only pages of this service may open a stream."
    return ClosingError(POLICY, ProblemError(403, "foreign-origin", detail))


def _too_many(streams: int) -> ClosingError:
    detail = f"{streams} streams are open. Try again later."
    return ClosingError(TRY_LATER, ProblemError(429, "too-many-streams", detail))
