"""Hostile requests of all kinds get an answer below 500, and leave nothing behind."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_samples import encode, texture
from fetal_core.images import ImageLimits
from ray_jobs.http_api import create_app
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from serving_samples import ConstantEngine, cine, constant_model, tiff

FILES = [
    encode(texture(1)),
    encode(texture(2), "JPEG"),
    encode(texture(3), "BMP"),
    tiff(2),
    cine(2),
]
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Kept(logging.Handler):
    """Keeps what is logged from warnings upwards."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[FastAPI, Inference]]:
    limits = ImageLimits(max_bytes=100_000, max_pixels=20_000, max_frames=4)
    config = HttpSettings(limits=limits, max_body_bytes=150_000, max_files=4, timeout_s=20)
    inference = Inference(config, constant_model(ConstantEngine()))
    kept = Kept()
    logging.getLogger().addHandler(kept)
    yield create_app(inference, config), inference
    logging.getLogger().removeHandler(kept)
    inference.close()
    assert kept.lines == [], "input must not be quoted in logs"


def ask(
    service: tuple[FastAPI, Inference],
    chunks: list[bytes],
    headers: list[tuple[bytes, bytes]],
    method: str = "POST",
    path: str = "/v1/predict",
    query: bytes = b"",
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request as a server would pass it on, without a client that mends it first."""
    app, inference = service
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("service", 80),
    }
    left, sent = list(chunks), []

    async def receive() -> Any:
        if not left:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert inference.pending == 0
    assert [message["type"] for message in sent[:1]] == ["http.response.start"]
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


def assert_answered(status: int, headers: dict[bytes, bytes], body: bytes) -> None:
    assert 200 <= status < 500, body
    if status >= 400:
        assert headers[b"content-type"] in (b"application/problem+json", b"application/json")
        document = json.loads(body)
        assert document.get("detail") or document.get("error")


def flipped(data: bytes, places: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, bit in places:
        changed[place % len(changed)] ^= 1 << bit
    return bytes(changed)


places = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 7)), max_size=8)
image_bytes = st.one_of(
    st.builds(flipped, st.sampled_from(FILES), places),
    st.builds(
        lambda a, b, at: a[:at] + b[at:], *2 * [st.sampled_from(FILES)], st.integers(0, 4000)
    ),
    st.builds(lambda data, at: data[:at], st.sampled_from(FILES), st.integers(0, 4000)),
    st.builds(lambda data, tail: data + tail, st.sampled_from(FILES), st.binary(max_size=300)),
    st.binary(max_size=300),
)
header_value = st.binary(max_size=60).map(lambda value: value.replace(b"\n", b" "))
header_name = st.sampled_from(
    [
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"transfer-encoding",
        b"x-request-id",
        b"authorization",
        b"x-api-key",
        b"host",
        b"expect",
        b"origin",
        b"x-forwarded-for",
        b"inference-header-content-length",
    ]
)
content_type = st.one_of(
    header_value,
    st.sampled_from(
        [b"image/png", b"IMAGE/PNG; x", b"multipart/form-data; boundary=b", b";", b'"']
    ),
    header_value.map(lambda value: b"multipart/form-data; boundary=" + value),
    header_value.map(lambda value: b'multipart/form-data; boundary="' + value + b'"; x="\\'),
)


@FUZZ
@given(data=image_bytes)
def test_mutated_images(service: tuple[FastAPI, Inference], data: bytes) -> None:
    headers = [(b"content-type", b"application/octet-stream")]
    assert_answered(*ask(service, [data], headers))


@FUZZ
@given(
    headers=st.lists(st.tuples(header_name, header_value), max_size=6),
    kind=content_type,
    data=image_bytes,
)
def test_hostile_headers(
    service: tuple[FastAPI, Inference],
    headers: list[tuple[bytes, bytes]],
    kind: bytes,
    data: bytes,
) -> None:
    status, answered, body = ask(service, [data], [(b"content-type", kind), *headers])
    assert_answered(status, answered, body)
    assert re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", answered[b"x-request-id"])


part_head = st.one_of(
    st.sampled_from(
        [
            b'Content-Disposition: form-data; name="file"; filename="a"',
            b"Content-Disposition: form-data; name=files; filename*=utf-8''%ff",
            b'Content-Disposition: form-data; name="',
            b"Content-Disposition",
            b"Content-Transfer-Encoding: base64",
            b": ",
        ]
    ),
    st.binary(max_size=80),
)
part = st.tuples(st.lists(part_head, max_size=3), image_bytes)


def form(parts: list[tuple[list[bytes], bytes]], ending: bytes) -> bytes:
    body = b"".join(
        b"--b\r\n" + b"\r\n".join(heads) + b"\r\n\r\n" + data + b"\r\n" for heads, data in parts
    )
    return body + ending


@FUZZ
@given(
    parts=st.lists(part, max_size=6),
    ending=st.sampled_from([b"--b--\r\n", b"--b--", b"--b", b"", b"--b--\r\nmore", b"\r\n"]),
    places=places,
    step=st.integers(1, 5000),
)
def test_hostile_multipart_bodies(
    service: tuple[FastAPI, Inference],
    parts: list[tuple[list[bytes], bytes]],
    ending: bytes,
    places: list[tuple[int, int]],
    step: int,
) -> None:
    body = form(parts, ending)
    body = flipped(body, places) if body else body
    chunks = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    assert_answered(*ask(service, chunks, headers))


@FUZZ
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "\u00e9"]),
    path=st.one_of(
        st.sampled_from(["/v1/predict", "/v1/model", "/v2/models/toy/infer", "/metrics", "/docs"]),
        st.text(max_size=40).map(lambda text: "/" + text),
        st.text(max_size=40).map(lambda text: "/static/" + text),
        st.text(max_size=40).map(lambda text: "/v2/models/" + text + "/infer"),
    ),
    query=st.binary(max_size=60),
    data=st.binary(max_size=100),
)
def test_hostile_addresses(
    service: tuple[FastAPI, Inference], method: str, path: str, query: bytes, data: bytes
) -> None:
    assert_answered(*ask(service, [data], [], method, path, query))


@FUZZ
@given(query=st.binary(max_size=60), plane=st.text(max_size=20), frame=st.text(max_size=20))
def test_hostile_questions(
    service: tuple[FastAPI, Inference], query: bytes, plane: str, frame: str
) -> None:
    asked = urlencode({"class": plane, "frame": frame}, errors="surrogatepass").encode()
    for words in (asked, b"class=" + query, b"frame=" + query):
        assert_answered(*ask(service, [b"no image"], [], "POST", "/v1/explain", words))


def test_bombs_are_refused_by_their_headers(service: tuple[FastAPI, Inference]) -> None:
    """Files of some kilobytes that claim far more pixels than the limit."""
    buffer = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(buffer, "PNG")
    pages = [Image.new("1", (100, 100)) for _ in range(6)]
    many = io.BytesIO()
    pages[0].save(many, "TIFF", save_all=True, append_images=pages[1:])
    for data in (buffer.getvalue(), many.getvalue()):
        status, _, body = ask(service, [data], [(b"content-type", b"image/png")])
        assert (status, json.loads(body)["type"]) == (413, "urn:fetal:problem:too-large")
