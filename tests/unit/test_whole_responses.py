"""Responses reach the socket in one piece."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from ray_jobs.whole_responses import WholeResponses

REQUEST = b"GET /%s HTTP/1.1\r\nHost: service\r\n\r\n"


class Recorder(asyncio.Transport):
    """Keeps what is written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: object) -> None:
        assert not self.closed
        assert isinstance(data, bytes)
        self.pieces.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def resume_reading(self) -> None:
        pass


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    async def parts() -> object:
        yield b"first"
        await asyncio.sleep(0.01)
        yield b"second"

    if scope["path"] == "/stream":
        await StreamingResponse(parts())(scope, receive, send)  # type: ignore[arg-type]
    else:
        await Response(b"x" * 3000)(scope, receive, send)


async def answered(*requests: bytes) -> Recorder:
    config = uvicorn.Config(app, http=WholeResponses, lifespan="off", log_config=None)
    config.load()
    protocol = WholeResponses(config, ServerState(), {})
    transport = Recorder()
    protocol.connection_made(transport)
    for request in requests:
        protocol.data_received(request)
        await asyncio.sleep(0.1)
    return transport


@pytest.mark.parametrize("times", [1, 2])
def test_header_and_body_are_written_together(times: int) -> None:
    transport = asyncio.run(answered(*[REQUEST % b"card"] * times))
    assert len(transport.pieces) == times
    for piece in transport.pieces:
        assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
        assert piece.endswith(b"\r\n\r\n" + b"x" * 3000)


def test_what_comes_later_is_not_waited_for() -> None:
    transport = asyncio.run(answered(REQUEST % b"stream"))
    first, *others = transport.pieces
    assert b"first" in first
    assert b"second" in b"".join(others)


def test_a_connection_that_is_closed_after_its_answer_gets_all_of_it() -> None:
    closing = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") % b"card"
    transport = asyncio.run(answered(closing))
    assert transport.closed
    assert b"".join(transport.pieces).endswith(b"x" * 3000)
