"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from fetal_core.errors import ImageError
from ray_jobs.serving_errors import (
    FileError,
    NotReadyError,
    QueueFullError,
    RequestError,
    TooSlowError,
)

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """An answer other than the one asked for.

    Attributes:
        status: of HTTP.
        kind: stable identifier in kebab-case, the end of the document's ``type``.
        detail: what is wrong, and what the caller can do about it.
        index: of the file concerned, where there are several.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        index: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.index = index
        self.headers = dict(headers or {})

    def document(self) -> dict[str, object]:
        """The problem document, without an instance."""
        found: dict[str, object] = {
            "type": f"urn:fetal:problem:{self.kind}",
            "title": self.kind.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }
        return found if self.index is None else found | {"index": self.index}

    def response(self, request_id: str) -> Response:
        """The answer to the request of that identifier."""
        document = self.document() | {"instance": f"urn:fetal:request:{request_id}"}
        # Escaped ASCII: a caller's words come back in details, lone surrogates included.
        content = json.dumps(document).encode("ascii")
        return Response(content, self.status, self.headers, MEDIA_TYPE)


def queue_full(retry_after_s: int) -> ProblemError:
    """The problem of a service that takes nothing more in for the moment."""
    detail = f"Too many requests are waiting. Try again in {retry_after_s} s."
    return ProblemError(429, "queue-full", detail, headers={"Retry-After": str(retry_after_s)})


def from_status(
    status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> ProblemError:
    """A problem that is known by its HTTP status alone."""
    phrase = HTTPStatus(status).phrase
    kind = phrase.lower().replace(" ", "-").replace("'", "")
    return ProblemError(status, kind, detail or f"{phrase}.", headers=headers)


def problem_of(error: Exception) -> ProblemError:
    """The problem that an error of the inference stands for.

    Unknown errors become a 500 that says nothing about them.
    """
    match error:
        case ProblemError():
            return error
        case ImageError():
            return _image_problem(error)
        case FileError():
            return _image_problem(error.cause, error.index)
        case QueueFullError():
            return queue_full(error.retry_after_s)
        case RequestError():
            return ProblemError(422, "malformed-request", str(error))
        case NotReadyError():
            return ProblemError(503, "not-ready", str(error), headers={"Retry-After": "2"})
        case TooSlowError():
            return ProblemError(504, "too-slow", str(error))
    return ProblemError(500, "internal", "The service has failed; its log names the request.")


def _image_problem(error: ImageError, index: int | None = None) -> ProblemError:
    status = 413 if error.kind == "too-large" else 400
    return ProblemError(status, error.kind, str(error), index)
