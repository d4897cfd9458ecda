"""Who may stream, how a stream ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import websockets
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect

from fetal_core.api_keys import KeyStore
from live_server import toy_model
from ray_jobs.http_api import create_app
from ray_jobs.http_gateway import KEY_PROTOCOL
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from ray_jobs.stream import SUBPROTOCOL, router
from stream_samples import (
    BUNDLE,
    FRAMES,
    BrokenEngine,
    GatedEngine,
    Served,
    admitted,
    ask,
    begun,
    closed,
    eventually,
    frames_alive,
    receive,
    run,
)


@pytest.mark.parametrize(
    ("message", "code", "kind"),
    [
        (b"x" * 5001, 1009, "too-large"),
        (" " * 4097, 1009, "too-large"),
        ("hello", 1003, "unsupported-message"),
        ("[" * 4000, 1003, "unsupported-message"),
        ("[]", 1003, "unsupported-message"),
        ('{"type": "dance"}', 1003, "unsupported-message"),
        ('{"type": ["reset"]}', 1003, "unsupported-message"),
    ],
)
def test_stream_is_closed_with_a_reason(message: str | bytes, code: int, kind: str) -> None:
    async def test(served: Served) -> tuple[int | None, list[dict[str, Any]]]:
        async with connect(served.uri) as socket:
            await socket.send(message)
            return await closed(socket)

    found, messages = run(test, max_frame_bytes=5000)
    assert found == code
    assert [one["type"] for one in messages] == ["error"]
    assert messages[0]["problem"]["type"] == f"urn:fetal:problem:{kind}"


def test_wrong_settings_are_explained() -> None:
    async def test(served: Served) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            wrong = ({"alpha": 0}, {"alpha": "\ud800"}, {"alpa": 1}, {"alpha": float("nan")})
            return [await ask(socket, {"type": "config", **values}) for values in wrong]

    for found in run(test):
        assert found["problem"]["status"] == 422
        assert "alpha" in found["problem"]["detail"]


def test_idle_stream_is_closed() -> None:
    async def test(served: Served) -> tuple[int | None, list[dict[str, Any]]]:
        async with connect(served.uri) as socket:
            return await closed(socket)

    code, messages = run(test, idle_s=0.2)
    assert code == 1008
    assert messages[0]["problem"]["type"] == "urn:fetal:problem:idle"


def test_fault_of_the_server_closes_without_details() -> None:
    async def test(served: Served) -> tuple[int | None, list[dict[str, Any]]]:
        async with connect(served.uri) as socket:
            await socket.send(FRAMES[0])
            return await closed(socket)

    code, messages = run(test, BrokenEngine())
    assert code == 1011
    assert messages[0]["problem"]["status"] == 500
    assert "secret" not in json.dumps(messages)


def test_streams_are_limited_and_a_closed_one_makes_room() -> None:
    async def test(served: Served) -> tuple[int | None, list[dict[str, Any]]]:
        async with connect(served.uri) as first:
            await ask(first, {"type": "ping"})
            async with connect(served.uri) as second:
                refused = await closed(second)
        assert await admitted(served)
        return refused

    code, messages = run(test, max_streams=1)
    assert code == 1013
    assert messages[0]["problem"]["status"] == 429


def test_foreign_page_is_kept_out_unless_keys_do_so() -> None:
    async def greet(served: Served, origin: str | None) -> int | None:
        async with connect(served.uri, origin=origin) as socket:
            with suppress(websockets.ConnectionClosed):
                await socket.send('{"type": "ping"}')
                while (await receive(socket))["type"] != "pong":
                    pass
                await socket.close()
        return socket.close_code

    async def test(served: Served) -> list[int | None]:
        own = served.uri.replace("ws://", "http://").removesuffix("/v1/stream")
        origins = (
            None,
            own,
            own.replace("http", "https"),
            "http://evil.example",
            "null",
            "http://[",
        )
        return [await greet(served, origin) for origin in origins]

    assert run(test) == [1000, 1000, 1000, 1008, 1008, 1008]
    keyed = HttpSettings(require_key=True, keys_uri="keys.json")
    assert run(test, http=keyed) == [1000] * 6


def test_subprotocol_is_answered_where_it_is_offered() -> None:
    async def test(served: Served) -> list[str | None]:
        found = []
        for offered in (None, [SUBPROTOCOL, "fetal.key.abc"], ["other"]):
            async with connect(served.uri, subprotocols=offered) as socket:
                await ask(socket, {"type": "ping"})
                found.append(socket.subprotocol)
        return found

    assert run(test) == [None, SUBPROTOCOL, None]


@pytest.mark.parametrize("abrupt", [True, False])
def test_client_that_leaves_in_the_middle_leaves_nothing_behind(abrupt: bool) -> None:
    engine = GatedEngine()

    async def test(served: Served) -> None:
        socket = await connect(served.uri)
        await socket.send(FRAMES[0])
        assert await begun(engine)
        await socket.send(FRAMES[1])
        assert served.inference.pending == 1
        if abrupt:
            socket.transport.abort()
        else:
            await socket.close()
        assert await eventually(lambda: served.inference.pending == 0)
        engine.leave.release(1)
        assert await eventually(lambda: not frames_alive())
        async with connect(served.uri) as again:
            await again.send(FRAMES[2])
            assert await begun(engine)
            engine.leave.release(1)
            found = await receive(again)
            assert (found["frame"], found["dropped"]) == (0, 0)
        assert not engine.begun.acquire(blocking=False)

    run(test, engine, max_streams=1)


def test_client_that_takes_no_answers_loses_its_place() -> None:
    async def send_on(socket: ClientConnection) -> None:
        while True:
            await socket.send(json.dumps({"type": "config", "alpha": "x" * 3000}))
            await asyncio.sleep(0)

    async def test(served: Served) -> bool:
        socket = await connect(served.uri, max_queue=1, compression=None)
        await ask(socket, {"type": "ping"})
        socket.transport.pause_reading()
        sending = asyncio.create_task(send_on(socket))
        found = await admitted(served)
        socket.transport.abort()
        with suppress(websockets.ConnectionClosed):
            await sending
        return found

    assert run(test, send_s=0.5, max_streams=1)


def test_connection_that_the_server_itself_has_closed_ends_the_stream() -> None:
    incoming = iter(
        [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": '{"type": "ping"}'}]
    )
    outgoing = []

    async def receive_next() -> dict[str, Any]:
        return next(incoming)

    async def send(message: dict[str, Any]) -> None:
        outgoing.append(message["type"])
        if message["type"] == "websocket.send":
            raise RuntimeError("unexpected message after websocket.close")

    inference = Inference(HttpSettings(), toy_model(BUNDLE))
    app = FastAPI()
    app.include_router(router(inference, HttpSettings()))
    scope = {"type": "websocket", "path": "/v1/stream", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive_next, send))
    inference.close()
    assert outgoing == ["websocket.accept", "websocket.send"]


def test_key_is_checked_at_the_handshake(tmp_path: Path) -> None:
    keys_uri = str(tmp_path / "keys.json")
    key = KeyStore(keys_uri).create("test")[1]
    http = HttpSettings(require_key=True, keys_uri=keys_uri)

    async def greet(uri: str, **options: Any) -> str | int:
        try:
            async with connect(uri, **options) as socket:
                return str((await ask(socket, {"type": "ping"}))["type"])
        except websockets.InvalidStatus as refused:
            return refused.response.status_code

    async def test(served: Served) -> list[str | int]:
        headers = {"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"X-API-Key": "fp_no_no"}
        found = [await greet(served.uri, additional_headers=header) for header in headers]
        offered = [SUBPROTOCOL, f"{KEY_PROTOCOL}{key}"]
        return [*found, await greet(served.uri, subprotocols=offered), await greet(served.uri)]

    assert run(test, http=http, make_app=create_app) == ["pong", "pong", 401, "pong", 401]


def test_open_stream_ends_when_its_key_is_revoked(tmp_path: Path) -> None:
    store = KeyStore(str(tmp_path / "keys.json"))
    (revoked_id, revoked), (_, kept) = store.create("leaked"), store.create("kept")
    http = HttpSettings(require_key=True, keys_uri=store.uri)

    async def test(served: Served) -> tuple[tuple[int | None, list[dict[str, Any]]], str]:
        async with (
            connect(served.uri, additional_headers={"X-API-Key": revoked}) as leaking,
            connect(served.uri, additional_headers={"X-API-Key": kept}) as other,
        ):
            assert (await ask(leaking, FRAMES[0]))["type"] == "result"
            store.revoke(revoked_id)
            ended = await closed(leaking)
            return ended, (await ask(other, FRAMES[1]))["type"]

    (code, messages), other = run(test, http=http, make_app=create_app)
    assert code == 1008
    assert [one["problem"]["status"] for one in messages] == [401]
    assert other == "result"


messages = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300),
    st.dictionaries(
        st.sampled_from(["type", "alpha", "switch_odds", "x"]),
        st.sampled_from(["config", "reset", "ping"]) | st.floats() | st.none() | st.text(),
    ).map(json.dumps),
)


def test_no_messages_make_a_server_fault() -> None:
    async def send_all(uri: str, batch: list[str | bytes]) -> tuple[int | None, list[Any]]:
        async with connect(uri) as socket:
            try:
                for message in batch:
                    await socket.send(message)
                await socket.send('{"type": "end"}')
            except websockets.ConnectionClosed:
                pass
            return await closed(socket)

    async def test(served: Served) -> None:
        @settings(max_examples=60, deadline=None)
        @given(st.lists(messages, max_size=6))
        def fuzz(batch: list[str | bytes]) -> None:
            code, found = asyncio.run(send_all(served.uri, batch))
            assert code == 1003
            assert all(one.get("problem", {"status": 0})["status"] < 500 for one in found)

        await asyncio.to_thread(fuzz)

    run(test)
