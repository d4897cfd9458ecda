"""The stream of a live scan, by a real WebSocket client against a server on loopback."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
import pytest
import websockets
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect

from builders import CLASSES, SIZE_PX, toy_bundle
from data_samples import encode, texture
from fetal_core.calibrate import apply_temperature
from fetal_core.engine import Engine
from fetal_core.predict import Predictor
from fetal_core.smoothing import Smoothed, SmoothingConfig, smooth
from live_server import serving, toy_model
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from ray_jobs.stream import SUBPROTOCOL, StreamSettings, router
from test_predict import tiff

T = TypeVar("T")

BUNDLE = toy_bundle()
PREDICTOR = Predictor(BUNDLE)
FRAMES = [encode(texture(seed, 60, 90), "PNG") for seed in range(4)]
BLANK = encode(np.full((60, 90), 7, np.uint8), "PNG")
PATIENCE_S = 30


class Fixture:
    """A served stream and what is behind it."""

    def __init__(self, address: str, inference: Inference) -> None:
        self.uri = f"ws://{address}/v1/stream"
        self.inference = inference


def run(
    test: Callable[[Fixture], Coroutine[Any, Any, T]],
    engine: Engine | None = None,
    http: HttpSettings | None = None,
    **limits: Any,
) -> T:
    """Run a test against a server of its own."""
    http = http or HttpSettings()
    inference = Inference(http, toy_model(BUNDLE, engine))
    app = FastAPI()
    app.include_router(router(inference, http, StreamSettings(**limits)))

    async def in_time(address: str) -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await test(Fixture(address, inference))

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


def test_frames_are_answered_as_by_the_predictor_and_pooled() -> None:
    async def test(served: Fixture) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            return [await ask(socket, frame) for frame in FRAMES]

    before: Smoothed | None = None
    for number, found in enumerate(run(test)):
        expected = PREDICTOR.predict_bytes(FRAMES[number])[0]
        assert (found["type"], found["frame"], found["dropped"]) == ("result", number, 0)
        assert (found["plane"], found["decision"]) == (expected.plane, expected.decision)
        assert found["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
        assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert found["model"] == {"name": "planes", "version": "1"}
        before = smooth(before, np.array([*expected.probabilities.values()]), SmoothingConfig())
        pooled = found["smoothed"]
        assert pooled["plane"] == CLASSES[before.plane]
        assert pooled["confidence"] == pooled["probabilities"][pooled["plane"]]
        assert [*pooled["probabilities"].values()] == pytest.approx(
            before.probabilities_K, abs=1e-5
        )
        assert pooled["decision"] == ("accept" if before.confidence >= 0.5 else "review")


def test_newest_frame_wins_and_the_dropped_are_counted_and_weighed() -> None:
    engine = GatedEngine()

    async def test(served: Fixture) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            await socket.send(FRAMES[0])
            assert await begun(engine)
            for frame in (FRAMES[1], FRAMES[2], b"never looked at", FRAMES[3]):
                await socket.send(frame)
            # The answer to a ping shows that all frames before it have come in.
            assert await ask(socket, {"type": "ping"}) == {"type": "pong"}
            engine.leave.release(2)
            return [await receive(socket), await receive(socket)]

    first, second = run(test, engine)
    assert (first["frame"], first["dropped"]) == (0, 0)
    assert (second["frame"], second["dropped"]) == (4, 3)
    expected = PREDICTOR.predict_bytes(FRAMES[3])[0]
    assert second["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    rows = [np.array([*found["probabilities"].values()]) for found in (first, second)]
    config = SmoothingConfig()
    pooled = smooth(smooth(None, rows[0], config), rows[1], config, frames=4)
    assert [*second["smoothed"]["probabilities"].values()] == pytest.approx(pooled.probabilities_K)


def test_reset_and_config_hold_for_the_frames_after_them() -> None:
    logits_NK = np.array([[4, 0, 0, 0], [0, 4, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]])

    async def test(served: Fixture) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            config = {"type": "config", "alpha": 0.01}
            assert await ask(socket, config) == config | {"switch_odds": 2.0}
            found = [await ask(socket, FRAMES[0]), await ask(socket, FRAMES[1])]
            assert await ask(socket, {"type": "reset"}) == {"type": "reset"}
            found.append(await ask(socket, FRAMES[2]))
            await ask(socket, {"type": "config", "alpha": 1})
            return [*found, await ask(socket, FRAMES[3])]

    found = run(test, FixedEngine(logits_NK))
    assert [one["plane"] for one in found] == [CLASSES[0], CLASSES[1], CLASSES[1], CLASSES[2]]
    shown = [one["smoothed"]["plane"] for one in found]
    assert shown == [CLASSES[0], CLASSES[0], CLASSES[1], CLASSES[2]]
    last_K = apply_temperature(logits_NK[3:], BUNDLE.info.temperature)[0]
    assert [*found[3]["smoothed"]["probabilities"].values()] == pytest.approx(last_K)


def test_reset_while_a_frame_is_in_work_spares_that_frame() -> None:
    engine = GatedEngine()

    async def test(served: Fixture) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            await socket.send(FRAMES[0])
            assert await begun(engine)
            await ask(socket, {"type": "reset"})
            await socket.send(FRAMES[1])
            engine.leave.release(2)
            return [await receive(socket), await receive(socket)]

    for found in run(test, engine):
        assert found["smoothed"]["probabilities"] == pytest.approx(found["probabilities"])


def test_swapped_model_with_other_classes_begins_anew() -> None:
    async def test(served: Fixture) -> dict[str, Any]:
        async with connect(served.uri) as socket:
            await ask(socket, FRAMES[0])
            served.inference.swap(toy_model(toy_bundle(classes=("a", "b", "c")), version="2"))
            return await ask(socket, FRAMES[1])

    found = run(test)
    assert found["model"]["version"] == "2"
    assert list(found["smoothed"]["probabilities"]) == ["a", "b", "c"]
    assert found["smoothed"]["probabilities"] == pytest.approx(found["probabilities"])


def test_bad_frame_is_refused_and_the_stream_goes_on() -> None:
    async def test(served: Fixture) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            bad = (b"", b"no image", FRAMES[0][:100], tiff([texture(0, 60, 90)] * 2))
            return [await ask(socket, frame) for frame in (*bad, FRAMES[0])]

    *refused, answered = run(test)
    kinds = [one["problem"]["type"].rpartition(":")[2] for one in refused]
    assert kinds == ["empty-image", "not-an-image", "truncated-image", "multi-frame"]
    assert [one["frame"] for one in refused] == [0, 1, 2, 3]
    assert {one["problem"]["status"] for one in refused} == {400}
    assert all(one["problem"]["detail"] for one in refused)
    assert (answered["type"], answered["frame"]) == ("result", 4)


def test_frame_that_shows_nothing_leaves_the_pooled_answer_as_it_is() -> None:
    async def test(served: Fixture) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            return [await ask(socket, frame) for frame in (BLANK, FRAMES[0], BLANK)]

    first, second, third = run(test)
    assert (first["decision"], first["smoothed"]) == ("reject", None)
    assert third["decision"] == third["smoothed"]["decision"] == "reject"
    assert third["smoothed"]["probabilities"] == second["smoothed"]["probabilities"]


def test_full_queue_does_not_end_the_stream() -> None:
    async def test(served: Fixture) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            served.inference.pending = served.inference.settings.queue_size
            found = [await ask(socket, FRAMES[0])]
            served.inference.pending = 0
            return [*found, await ask(socket, FRAMES[0])]

    full, answered = run(test)
    assert full["problem"]["status"] == 429
    assert answered["type"] == "result"


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
    async def test(served: Fixture) -> tuple[int | None, list[dict[str, Any]]]:
        async with connect(served.uri) as socket:
            await socket.send(message)
            return await closed(socket)

    found, messages = run(test, max_frame_bytes=5000)
    assert found == code
    assert [one["type"] for one in messages] == ["error"]
    assert messages[0]["problem"]["type"] == f"urn:fetal:problem:{kind}"


def test_wrong_settings_are_explained() -> None:
    async def test(served: Fixture) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            wrong = ({"alpha": 0}, {"alpha": "\ud800"}, {"alpa": 1}, {"alpha": float("nan")})
            return [await ask(socket, {"type": "config", **values}) for values in wrong]

    for found in run(test):
        assert found["problem"]["status"] == 422
        assert "alpha" in found["problem"]["detail"]


def test_idle_stream_is_closed() -> None:
    async def test(served: Fixture) -> tuple[int | None, list[dict[str, Any]]]:
        async with connect(served.uri) as socket:
            return await closed(socket)

    code, messages = run(test, idle_s=0.2)
    assert code == 1008
    assert messages[0]["problem"]["type"] == "urn:fetal:problem:idle"


def test_fault_of_the_server_closes_without_details() -> None:
    async def test(served: Fixture) -> tuple[int | None, list[dict[str, Any]]]:
        async with connect(served.uri) as socket:
            await socket.send(FRAMES[0])
            return await closed(socket)

    code, messages = run(test, BrokenEngine())
    assert code == 1011
    assert messages[0]["problem"]["status"] == 500
    assert "secret" not in json.dumps(messages)


def test_streams_are_limited_and_a_closed_one_makes_room() -> None:
    async def test(served: Fixture) -> tuple[int | None, list[dict[str, Any]]]:
        async with connect(served.uri) as first:
            await ask(first, {"type": "ping"})
            async with connect(served.uri) as second:
                refused = await closed(second)

        @asynccontextmanager
        async def another() -> AsyncIterator[bool]:
            async with connect(served.uri) as socket:
                try:
                    yield (await ask(socket, {"type": "ping"}))["type"] == "pong"
                except websockets.ConnectionClosed:
                    yield False

        for _ in range(100):
            async with another() as admitted:
                if admitted:
                    return refused
            await asyncio.sleep(0.05)
        pytest.fail("the closed stream keeps its place")

    code, messages = run(test, max_streams=1)
    assert code == 1013
    assert messages[0]["problem"]["status"] == 429


def test_foreign_page_is_kept_out_unless_keys_do_so() -> None:
    async def greet(served: Fixture, origin: str | None) -> int | None:
        async with connect(served.uri, origin=origin) as socket:
            await socket.send('{"type": "ping"}')
            await socket.recv()
            await socket.close()
            return socket.close_code

    async def test(served: Fixture) -> list[int | None]:
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
    async def test(served: Fixture) -> list[str | None]:
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

    async def test(served: Fixture) -> None:
        threads = threading.active_count()
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
        async with connect(served.uri) as again:
            await again.send(FRAMES[2])
            assert await begun(engine)
            engine.leave.release(1)
            found = await receive(again)
            assert (found["frame"], found["dropped"]) == (0, 0)
        assert threading.active_count() <= threads + 2

    run(test, engine, max_streams=1)


def test_client_that_takes_no_answers_is_let_go() -> None:
    async def send_on(socket: ClientConnection) -> None:
        while True:
            await socket.send(json.dumps({"type": "config", "alpha": "x" * 3000}))

    async def test(served: Fixture) -> None:
        socket = await connect(served.uri, max_queue=1)
        socket.transport.pause_reading()
        with pytest.raises(websockets.ConnectionClosed):
            await send_on(socket)

    run(test, send_s=0.5)


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

    async def test(served: Fixture) -> None:
        @settings(max_examples=60, deadline=None)
        @given(st.lists(messages, max_size=6))
        def fuzz(batch: list[str | bytes]) -> None:
            code, found = asyncio.run(send_all(served.uri, batch))
            assert code == 1003
            assert all(one.get("problem", {"status": 0})["status"] < 500 for one in found)

        await asyncio.to_thread(fuzz)

    run(test)
