"""The metadata service of an EC2 instance, version 2, on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOTICE = "spot/instance-action"
REBALANCE = "events/recommendations/rebalance"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"


class FakeMetadata(ThreadingHTTPServer):
    """Answers as EC2 does: only with a session token that it issued and that is still valid.

    Attributes:
        values: what lies under ``/latest/meta-data/``; all else is not found.
        faults: for the next requests of a path: a status, or ``"hang"`` and ``"hang up"``.
        asked: paths in the order in which they were asked for.
        ttls_s: lifetimes of the tokens that were issued.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.values = {"instance-id": "i-0fe7a1", "local-ipv4": "127.0.0.1"}
        self.faults: dict[str, list[int | str]] = {}
        self.asked: list[str] = []
        self.ttls_s: list[int] = []
        self.token_life_s: float | None = None
        self.ended = threading.Event()
        self._tokens: dict[str, float] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def issue(self, ttl_s: int) -> str:
        token = f"token-{len(self.ttls_s)}"
        self.ttls_s.append(ttl_s)
        life_s = ttl_s if self.token_life_s is None else self.token_life_s
        self._tokens[token] = time.monotonic() + life_s
        return token

    def revoke_tokens(self) -> None:
        self._tokens.clear()

    def is_valid(self, token: str | None) -> bool:
        return token is not None and time.monotonic() < self._tokens.get(token, 0)


class _Handler(BaseHTTPRequestHandler):
    server: FakeMetadata

    def do_PUT(self) -> None:
        ttl = self.headers.get(TTL_HEADER, "")
        if self._faulty("token"):
            return
        if self.path != "/latest/api/token" or not ttl.isdigit() or not 1 <= int(ttl) <= 21_600:
            self._answer(400)
        elif "X-Forwarded-For" in self.headers:
            self._answer(403)
        else:
            self._answer(200, self.server.issue(int(ttl)))

    def do_GET(self) -> None:
        path = self.path.removeprefix("/latest/meta-data/")
        self.server.asked.append(path)
        if self._faulty(path):
            return
        if not self.server.is_valid(self.headers.get(TOKEN_HEADER)):
            self._answer(401)
        elif path not in self.server.values:
            self._answer(404)
        else:
            self._answer(200, self.server.values[path])

    def _faulty(self, path: str) -> bool:
        faults = self.server.faults.get(path)
        if not faults:
            return False
        fault = faults.pop(0)
        if fault == "hang":
            self.server.ended.wait(30)
        elif isinstance(fault, int):
            self._answer(fault)
        self.close_connection = True
        return True

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def metadata_server() -> Iterator[FakeMetadata]:
    server = FakeMetadata()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()
