"""HTTP for uvicorn, with responses that are written in one piece."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class WholeResponses(HttpToolsProtocol):
    """Writes what a response consists of together.

    By itself uvicorn writes the header, which wakes who reads it, and then the body. A process that
    is killed in between has begun an answer that nobody else can give any more.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a connection."""
        joined = _Joined(cast(asyncio.Transport, transport), self.loop)
        super().connection_made(cast(asyncio.Transport, joined))

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to another protocol."""
        joined = cast(_Joined, self.transport)
        joined.flush()
        self.transport = joined.inner
        super().handle_websocket_upgrade()


class _Joined:
    """A transport that joins what is written in one turn of the event loop."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.inner = inner
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        if data and not self.inner.is_closing():
            self.inner.write(data)

    def close(self) -> None:
        self.flush()
        self.inner.close()
