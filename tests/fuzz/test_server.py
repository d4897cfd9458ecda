"""What no HTTP client sends, over sockets to a real server, which goes on answering."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from campaign import SETTINGS, cheap_model
from data_samples import encode, texture
from live_server import serving
from mutations import Hostile, hostile
from ray_jobs.http_api import create_app
from ray_jobs.inference import Inference

IMAGE = encode(texture(1))
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: service\r\nContent-Type: image/png\r\n"
GOOD = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
BROKEN = [
    b"",
    b"\r\n" * 500,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 500_000 + b"\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + IMAGE,
    HEAD + b"Content-Length: -1\r\n\r\n" + IMAGE,
    HEAD + b"Content-Length: 99999999999999999999\r\n\r\n" + IMAGE,
    HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + IMAGE,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + IMAGE,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000,
    HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Content-Length: %d\r\n\r\n" % (len(IMAGE) + 1) + IMAGE,
    HEAD + b"Content-Length: %d\r\n\r\n" % (len(IMAGE) - 1) + IMAGE + GOOD,
    HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    GOOD * 20,
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    inference = Inference(SETTINGS, cheap_model(tmp_path_factory.mktemp("bundle")))
    # uvicorn logs requests that are not HTTP, and says no more than that.
    with serving(create_app(inference, SETTINGS), http="httptools", lifespan="off") as where:
        host, _, port = where.partition(":")
        yield host, int(port)
    inference.close()


def answered(address: tuple[str, int], data: bytes, leaves: bool = False) -> bytes:
    """What comes back until the server closes, or stays silent for a second."""
    received = b""
    with socket.create_connection(address, 5) as connection, suppress(OSError):
        connection.settimeout(1.0)
        connection.sendall(data)
        if leaves:
            return b""
        while part := connection.recv(65536):
            received += part
    return received


def assert_alive(address: tuple[str, int]) -> None:
    assert answered(address, GOOD).startswith(b"HTTP/1.1 200 ")


def raw(asked: Hostile, chance: random.Random) -> bytes:
    """A hostile request on the wire, whose length is sometimes wrong."""
    body = b"".join(asked.chunks)
    length = len(body) + chance.choice((0, 0, 0, -1, 1, 1000, -(len(body) // 2)))
    lines = [f"{asked.method} {asked.path} HTTP/1.1".encode("utf-8", "surrogateescape")]
    lines += [b"Host: service", b"Connection: close", b"Content-Length: %d" % length]
    lines += [name + b": " + value for name, value in asked.headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_invalid_http(address: tuple[str, int], number: int) -> None:
    answer = answered(address, BROKEN[number])
    assert b"HTTP/1.1 5" not in answer
    assert b"Traceback" not in answer
    assert_alive(address)


def test_hostile_requests_on_the_wire(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for number in range(300):
        chance = random.Random(number)
        data, leaves = raw(hostile(number), chance), chance.random() < 0.4
        data = data[: chance.randrange(len(data))] if leaves else data
        answer = answered(address, data, leaves)
        assert not answer.startswith(b"HTTP/1.1 5"), number
    assert_alive(address)
    assert [record.getMessage() for record in caplog.records] == []


def test_slow_bodies_end(address: tuple[str, int]) -> None:
    """Fifty clients that send a byte now and then are told so, and hinder nobody."""
    connections = [socket.create_connection(address, 5) for _ in range(50)]
    for connection in connections:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
    for _ in range(5):
        time.sleep(0.05)
        for connection in connections:
            connection.sendall(b"a")
    assert_alive(address)
    for connection in connections:
        connection.settimeout(10)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
        connection.close()
    assert_alive(address)
