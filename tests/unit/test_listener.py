"""A replica's own socket."""

from __future__ import annotations

import asyncio
import stat
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import unix_connect

from ray_jobs.front import socket_path
from ray_jobs.http_settings import MIB, HttpSettings
from ray_jobs.listener import Listener, NoSlotError
from serving_samples import serving


async def nothing() -> None:
    await asyncio.Event().wait()


def test_a_replica_answers_on_a_socket_for_this_user_alone(tmp_path: Path) -> None:
    with serving() as (app, _):
        listener = Listener(app, tmp_path, 1, nothing, HttpSettings())
        path = socket_path(tmp_path, 0)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://service") as client:
            assert client.get("/readyz").status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(NoSlotError):
            Listener(app, tmp_path, 1, nothing, HttpSettings())
        listener.close()
        Listener(app, tmp_path, 1, nothing, HttpSettings()).close()


def test_a_stream_that_is_not_read_holds_few_frames(tmp_path: Path) -> None:
    frames = [bytes([number]) * MIB for number in range(12)]
    read, found = threading.Event(), list[bytes]()

    async def reads_late(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.to_thread(read.wait, 30)
        while (message := await receive())["type"] == "websocket.receive":
            found.append(message["bytes"])

    async def stream() -> bool:
        async with unix_connect(str(socket_path(tmp_path, 0)), "ws://service/") as client:

            async def send_all() -> None:
                for frame in frames:
                    await client.send(frame)

            sending = asyncio.create_task(send_all())
            done, _ = await asyncio.wait({sending}, timeout=3)
            read.set()
            await sending
            return not done

    listener = Listener(reads_late, tmp_path, 1, nothing, HttpSettings())
    try:
        waited = asyncio.run(stream())
    finally:
        read.set()
        listener.close()
    assert waited
    assert found == frames
