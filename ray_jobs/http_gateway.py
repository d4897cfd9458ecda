"""What all requests pass: keys, headers, access log, metrics and the last resort for errors."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fetal_core.errors import FetalError
from ray_jobs.problems import ProblemError, problem_of
from ray_jobs.serving_metrics import ServingMetrics

logger = logging.getLogger(__name__)

Check = Callable[[str], Awaitable[bool]]

KEY_PROTOCOL = "fetal.key."
"""Start of a WebSocket subprotocol that carries a key: browsers can set no other header."""

_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OPEN_PATHS = frozenset(
    {"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
)
_AUTHORISE = "authorise"
_CLIENT_GONE = 499  # nginx's number, for the log; nobody receives it
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Gateway:
    """Pure ASGI middleware, to be the outermost.

    Args:
        app: the application.
        metrics: counts its answers.
        check_key: tells whether a key is valid; None lets everybody in.
    """

    def __init__(self, app: ASGIApp, metrics: ServingMetrics, check_key: Check | None) -> None:
        self._app = app
        self._metrics = metrics
        self._check_key = check_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = time.perf_counter()
        request_id = scope.setdefault("state", {})["request_id"] = _request_id(scope)
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(_SECURITY_HEADERS)
                headers["X-Request-ID"] = request_id
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._authorise(scope)
            await self._app(scope, receive, send_on)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except Exception as error:
            problem = _problem(error, request_id)
            if not status:
                await problem.response(request_id)(scope, receive, send_on)
        finally:
            self._record(scope, request_id, status, time.perf_counter() - started_s)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope.setdefault("state", {})["request_id"] = _request_id(scope)
        try:
            await self._authorise(scope)
        except ProblemError as problem:
            await _refuse(problem, request_id, scope, send)
            self._record(scope, request_id, problem.status, 0.0)
            return
        scope["state"][_AUTHORISE] = self._authorise
        await self._app(scope, receive, send)

    async def _authorise(self, scope: Scope) -> None:
        path = scope["path"]
        if self._check_key is None or path in _OPEN_PATHS or path.startswith("/static/"):
            return
        try:
            if await self._check_key(_presented_key(Headers(scope=scope))):
                return
        except FetalError as error:
            logger.error("API keys cannot be checked: %s", type(error).__name__)
            raise ProblemError(
                503, "keys-unavailable", "API keys cannot be checked at present. Try again later."
            ) from None
        raise ProblemError(
            401,
            "unauthorized",
            "Send a valid API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _record(self, scope: Scope, request_id: str, status: int, duration_s: float) -> None:
        """Count and log by the route's pattern: the path itself may hold anything."""
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.latency.labels(route).observe(duration_s)
        if logger.isEnabledFor(logging.INFO):
            line = {
                "request_id": request_id,
                "route": route,
                "status": status,
                "duration_ms": round(duration_s * 1000, 1),
            }
            logger.info("%s", json.dumps(line))


async def authorise_again(scope: Scope) -> None:
    """Check the key again with which a WebSocket was opened.

    Raises:
        ProblemError: 401, it is not valid any more; 503, keys cannot be checked.
    """
    if (authorise := scope.get("state", {}).get(_AUTHORISE)) is not None:
        await authorise(scope)


def _request_id(scope: Scope) -> str:
    """The caller's own identifier where it is harmless, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _presented_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    if "x-api-key" in headers:
        return headers["x-api-key"]
    protocols = headers.get("sec-websocket-protocol", "").split(",")
    offered = (name.strip() for name in protocols)
    keys = (name.removeprefix(KEY_PROTOCOL) for name in offered if name.startswith(KEY_PROTOCOL))
    return next(keys, "")


def _problem(error: Exception, request_id: str) -> ProblemError:
    """The problem to answer; of unknown errors the type and place are logged, and no value."""
    problem = problem_of(error)
    if problem.status == 500:
        last = traceback.extract_tb(error.__traceback__)[-1]
        logger.error(
            "request %s failed: %s in %s, line %s",
            request_id,
            type(error).__name__,
            last.name,
            last.lineno,
        )
    return problem


async def _refuse(problem: ProblemError, request_id: str, scope: Scope, send: Send) -> None:
    """Answer the handshake of a WebSocket by a problem, or close it where that cannot be."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": problem.kind})
        return
    response = problem.response(request_id)
    headers = {"type": "websocket.http.response.start", "status": problem.status}
    await send(headers | {"headers": response.raw_headers})
    await send({"type": "websocket.http.response.body", "body": response.body})
