"""Bodies of requests: what is refused, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from data_samples import encode, texture
from fetal_core.images import ImageLimits
from ray_jobs.inference import Inference
from serving_samples import (
    ConstantEngine,
    asked,
    assert_problem,
    client,
    constant_model,
    scope_of,
    serving,
    tiff,
)

IMAGE = encode(texture(0, 60, 90))


@pytest.mark.parametrize(
    ("body", "media_type", "status", "kind"),
    [
        (b"", "image/png", 400, "empty-image"),
        (b"GIF89a" + bytes(50), "image/gif", 400, "not-an-image"),
        (IMAGE[: len(IMAGE) // 2], "image/png", 400, "truncated-image"),
        (IMAGE[:60] + b"\xff" + IMAGE[61:], "image/png", 400, "unreadable-image"),
        (encode(texture(0, 10, 40)), "image/png", 400, "too-small"),
        (encode(texture(0, 101, 101)), "image/png", 413, "too-large"),
        (tiff(4), "image/tiff", 413, "too-large"),
        (bytes(40_001), "image/png", 413, "too-large"),
        (IMAGE, "text/plain", 415, "unsupported-media-type"),
        (IMAGE, "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
        (b"x", "multipart/form-data", 422, "malformed-request"),
        (b"x", "multipart/form-data; boundary=" + 71 * "b", 422, "malformed-request"),
        (b"no boundary", "multipart/form-data; boundary=b", 422, "malformed-request"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422, "malformed-request"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 422, "malformed-request"),
    ],
)
def test_bodies_that_are_refused(body: bytes, media_type: str, status: int, kind: str) -> None:
    limits = ImageLimits(max_pixels=10_000, max_frames=3)
    with serving(limits=limits, max_body_bytes=40_000) as (app, _):
        response = asked(
            app, "POST", "/v1/predict", content=body, headers={"content-type": media_type}
        )
        assert "index" not in assert_problem(response, status, kind)


def multipart(*heads: str, end: str = "--b--\r\n") -> dict[str, Any]:
    """A request whose parts are all the same image under other heads."""
    parts = [b"--b\r\n" + head.encode() + b"\r\n\r\n" + IMAGE + b"\r\n" for head in heads]
    body = b"".join(parts) + end.encode()
    return {"content": body, "headers": {"content-type": "multipart/form-data; boundary=b"}}


FILE = 'Content-Disposition: form-data; name="file"; filename="x"'


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (multipart(FILE, FILE), 200, ""),
        (multipart("CONTENT-disposition: form-data; NAME=files"), 200, ""),
        (multipart(FILE, FILE, FILE, FILE), 413, "too-many-files"),
        (multipart(FILE, end=""), 422, "malformed-request"),
        (multipart(FILE, end="--b-"), 422, "malformed-request"),
        (multipart(FILE.replace("file", "image", 1)), 422, "malformed-request"),
        (multipart("Content-Disposition: attachment; name=file"), 422, "malformed-request"),
        (multipart("Content-Type: image/png"), 422, "malformed-request"),
        (multipart(FILE + "\r\nX: " + 9000 * "y"), 422, "malformed-request"),
        (multipart("\r\n".join([FILE] + 50 * ["X: y"])), 422, "malformed-request"),
    ],
)
def test_multipart_bodies_are_bounded_and_checked(
    request_: dict[str, Any], status: int, kind: str
) -> None:
    with serving(max_files=3) as (app, _):
        response = asked(app, "POST", "/v1/predict", **request_)
    if kind:
        assert_problem(response, status, kind)
    else:
        assert response.status_code == status


def test_one_bad_part_is_named_by_its_index() -> None:
    parts = [("file", ("a", IMAGE)), ("file", ("b", IMAGE)), ("file", ("c", b"text"))]
    with serving() as (app, _):
        problem = assert_problem(
            asked(app, "POST", "/v1/predict", files=parts), 400, "not-an-image"
        )
    assert problem["index"] == 2


def test_a_long_body_is_refused_by_its_head_before_it_is_read() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    with serving(max_body_bytes=100) as (app, _):
        scope = scope_of("/v1/predict", {"content-length": "101"})
        asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413


def test_an_endless_body_is_refused_at_the_limit() -> None:
    chunks, sent = 0, []

    async def receive() -> Any:
        nonlocal chunks
        chunks += 1
        return {"type": "http.request", "body": bytes(10), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    with serving(max_body_bytes=100) as (app, _):
        asyncio.run(app(scope_of("/v1/predict"), receive, send))
    assert sent[0]["status"] == 413
    assert chunks == 11


def test_a_slow_body_is_given_up() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    with serving(body_timeout_s=0.1) as (app, _):
        asyncio.run(app(scope_of("/v1/predict"), receive, send))
    assert sent[0]["status"] == 408


def test_bodies_of_all_requests_together_are_bounded() -> None:
    engine = ConstantEngine(held=True)
    data = encode(texture(0, 60, 90), "BMP")

    async def ask(app: FastAPI, inference: Inference) -> None:
        async with client(app) as session:
            first = asyncio.create_task(session.post("/v1/predict", content=data))
            assert await asyncio.to_thread(engine.started.wait, 10)
            refused = await session.post("/v1/predict", content=data)
            assert_problem(refused, 429, "queue-full")
            engine.go.set()
            assert (await first).status_code == 200
            assert (await session.post("/v1/predict", content=data)).status_code == 200

    size = len(data)
    with serving(constant_model(engine), max_buffered_bytes=2 * size - 1, max_body_bytes=size) as (
        app,
        inference,
    ):
        asyncio.run(ask(app, inference))
