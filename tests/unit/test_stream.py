"""What a stream answers, by a real WebSocket client against a server on loopback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect

from builders import CLASSES, toy_bundle
from data_samples import texture
from fetal_core.calibrate import apply_temperature
from fetal_core.smoothing import Smoothed, SmoothingConfig, smooth
from live_server import toy_model
from stream_samples import (
    BLANK,
    BUNDLE,
    FRAMES,
    PREDICTOR,
    FixedEngine,
    GatedEngine,
    Served,
    ask,
    begun,
    receive,
    run,
)
from test_predict import tiff


def test_frames_are_answered_as_by_the_predictor_and_pooled() -> None:
    async def test(served: Served) -> list[dict[str, Any]]:
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

    async def test(served: Served) -> list[dict[str, Any]]:
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

    async def test(served: Served) -> list[dict[str, Any]]:
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

    async def test(served: Served) -> list[dict[str, Any]]:
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
    async def test(served: Served) -> dict[str, Any]:
        async with connect(served.uri) as socket:
            await ask(socket, FRAMES[0])
            served.inference.swap(toy_model(toy_bundle(classes=("a", "b", "c")), version="2"))
            return await ask(socket, FRAMES[1])

    found = run(test)
    assert found["model"]["version"] == "2"
    assert list(found["smoothed"]["probabilities"]) == ["a", "b", "c"]
    assert found["smoothed"]["probabilities"] == pytest.approx(found["probabilities"])


def test_bad_frame_is_refused_and_the_stream_goes_on() -> None:
    async def test(served: Served) -> list[dict[str, Any]]:
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
    async def test(served: Served) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            return [await ask(socket, frame) for frame in (BLANK, FRAMES[0], BLANK)]

    first, second, third = run(test)
    assert (first["decision"], first["smoothed"]) == ("reject", None)
    assert third["decision"] == third["smoothed"]["decision"] == "reject"
    assert third["smoothed"]["probabilities"] == second["smoothed"]["probabilities"]


def test_full_queue_does_not_end_the_stream() -> None:
    async def test(served: Served) -> list[dict[str, Any]]:
        async with connect(served.uri) as socket:
            with served.inference.queue.admitted(served.inference.settings.queue_size):
                found = [await ask(socket, FRAMES[0])]
            return [*found, await ask(socket, FRAMES[0])]

    full, answered = run(test)
    assert full["problem"]["status"] == 429
    assert answered["type"] == "result"
