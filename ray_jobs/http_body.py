"""Bodies of requests, bounded while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from ray_jobs.http_settings import HttpSettings
from ray_jobs.problems import ProblemError, queue_full

_PART_NAMES = (b"file", b"files")
_LONGEST_BOUNDARY = 70  # RFC 2046, 5.1.1


@dataclass(frozen=True)
class Upload:
    """The files of a request; ``multipart`` if they are counted by their parts."""

    files: list[bytes]
    multipart: bool


class Body:
    """A body that has arrived, in chunks, until somebody takes it."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        """Add to its end."""
        self._chunks.append(chunk)

    def take(self) -> bytes:
        """All of it; nothing is kept here."""
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body


class Intake:
    """Reads bodies within the settings' limits on each and on all of them together."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self.buffered_bytes = 0

    @asynccontextmanager
    async def upload(self, request: Request) -> AsyncIterator[Upload]:
        """The files of a raw or multipart body, counted as buffered until the context ends.

        Raises:
            ProblemError: 408, 413, 415, 422 or 429.
            ClientDisconnect: the client has gone.
        """
        content_type, options = parse_options_header(request.headers.get("content-type"))
        if content_type == b"multipart/form-data":
            form = _Form(options.get(b"boundary", b""), self._settings.max_files)
            async with self._received(request, form.write):
                yield Upload(form.files(), multipart=True)
            return
        _check_media_type(content_type.decode("latin-1"))
        async with self.body(request) as body:
            yield Upload([body.take()], multipart=False)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[Body]:
        """A body of any media type, counted as buffered until the context ends, also once taken.

        Raises:
            ProblemError: 408, 413, 415 (if compressed) or 429.
            ClientDisconnect: the client has gone.
        """
        body = Body()
        async with self._received(request, body.write):
            yield body

    @asynccontextmanager
    async def _received(
        self, request: Request, take: Callable[[bytes], None]
    ) -> AsyncIterator[None]:
        limit = self._settings.max_body_bytes
        _check_head(request, limit)
        size = 0

        async def receive() -> None:
            nonlocal size
            async for chunk in request.stream():
                size += len(chunk)
                self.buffered_bytes += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if self.buffered_bytes > self._settings.max_buffered_bytes:
                    raise queue_full(1)
                take(chunk)

        try:
            await _in_time(receive(), self._settings.body_timeout_s)
            yield
        finally:
            self.buffered_bytes -= size


class _Form:
    """Collects the file parts of a multipart/form-data body (RFC 7578)."""

    def __init__(self, boundary: bytes, max_files: int) -> None:
        if not 0 < len(boundary) <= _LONGEST_BOUNDARY:
            raise _malformed(f"its boundary must have 1 to {_LONGEST_BOUNDARY} characters")
        self._max_files = max_files
        self._parts: list[bytearray] = []
        self._field = self._value = b""
        self._named = self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def files(self) -> list[bytes]:
        """Takes the parts out, in their order, once all has been written."""
        if not self._ended:
            raise _malformed("it ends before its last boundary")
        if not self._parts:
            raise _malformed("it has no part named file")
        files = []
        while self._parts:
            files.append(bytes(self._parts.pop(0)))
        return files

    def _begin(self) -> None:
        if len(self._parts) == self._max_files:
            detail = f"The request has more than {self._max_files} files. Send several requests."
            raise ProblemError(413, "too-many-files", detail)
        self._parts.append(bytearray())
        self._named = False

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1] += data[start:end]

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            kind, options = parse_options_header(self._value)
            self._named = kind == b"form-data" and options.get(b"name") in _PART_NAMES
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        if not self._named:
            raise _malformed(f"part {len(self._parts) - 1} is not named file or files")

    def _end(self) -> None:
        self._ended = True


async def _in_time(receiving: Awaitable[None], timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await receiving
    except TimeoutError:
        detail = f"The body did not arrive within {timeout_s:g} s."
        raise ProblemError(408, "slow-body", detail) from None


def _check_head(request: Request, limit: int) -> None:
    """Refuse by the headers what need not be read."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(
            415, "unsupported-media-type", "Compressed bodies are not read: send the file as it is."
        )
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit)


def _check_media_type(content_type: str) -> None:
    allowed = content_type in ("", "application/dicom", "application/octet-stream")
    if not allowed and not content_type.startswith("image/"):
        raise ProblemError(
            415,
            "unsupported-media-type",
            "Send an image as image/*, application/dicom or application/octet-stream, or several "
            "as multipart/form-data.",
        )


def _too_large(limit: int) -> ProblemError:
    detail = f"The body is larger than {limit:,} bytes. Send fewer or smaller files."
    return ProblemError(413, "too-large", detail)


def _malformed(reason: str) -> ProblemError:
    detail = f"The multipart body is malformed: {reason}. Send parts named file."
    return ProblemError(422, "malformed-request", detail)
