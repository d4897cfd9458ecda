"""S3 servers on this machine for tests of concurrent writers: requests are served one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import boto3
import pytest
from moto.moto_server.threaded_moto_server import MotoRequestHandler
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Environ = dict[str, Any]


class Server:
    """moto, whose conditions and writes are atomic as those of S3 are.

    moto looks at a condition and then writes, which threads may interleave.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.uri = ""
        self.before: Callable[[Environ], None] = lambda environ: None
        self.after: Callable[[Environ], None] = lambda environ: None
        self.denied: Callable[[Environ], bool] = lambda environ: False

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.before(environ)
        if self.denied(environ):
            start_response("403 Forbidden", [("Content-Type", "application/xml"), _date()])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        with self._lock:
            answer = list(self._app(environ, start_response))
        self.after(environ)
        return answer


def _date() -> tuple[str, str]:
    return "Date", formatdate(usegmt=True)


def is_write(environ: Environ, name: str) -> bool:
    """Whether a request writes an object of this file name."""
    return environ["REQUEST_METHOD"] in ("PUT", "POST") and environ["PATH_INFO"].endswith(name)


@contextmanager
def s3_server(application: Server | None = None) -> Iterator[Server]:
    """A running server with one empty bucket, ``uri``; the environment points to it."""
    application = Server() if application is None else application
    server = make_server("127.0.0.1", 0, application, True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    # The name is its own, since clients keep what they know of a bucket.
    bucket = f"registry-{server.server_port}"
    application.uri = f"s3://{bucket}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
        yield application
    server.shutdown()
    thread.join()
    server.server_close()
