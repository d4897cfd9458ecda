"""Keys, security headers, request ids, and what is logged and counted."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from data_samples import encode, texture
from fetal_core.api_keys import KeyStore
from serving_samples import (
    BrokenEngine,
    asked,
    assert_problem,
    constant_model,
    scope_of,
    serving,
)

IMAGE = encode(texture(0, 60, 90))


def test_keys(tmp_path: Path) -> None:
    store = KeyStore(str(tmp_path / "keys.json"))
    _, key = store.create("one")
    image: dict[str, Any] = {"content": IMAGE}
    bearer = {"authorization": f"Bearer {key}"}
    wrong: list[dict[str, Any]] = [
        {},
        {"authorization": f"Basic {key}"},
        {"authorization": "Bearer"},
        {"x-api-key": key[:-1]},
        {"x-api-key": b"\xff\xfe"},
        {"authorization": "Bearer x", "x-api-key": key},
    ]
    with serving(require_key=True, keys_uri=store.uri) as (app, _):
        for headers in (bearer, {"x-api-key": key}):
            assert asked(app, "POST", "/v1/predict", headers=headers, **image).status_code == 200
        for headers in wrong:
            response = asked(app, "POST", "/v1/predict", headers=headers, **image)
            assert_problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        closed = ("/v1/model", "/v1/models", "/metrics", "/v2", "/nope", "/healthz/", "/static")
        assert {asked(app, "GET", path).status_code for path in closed} == {401}
        opened = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/app.js")
        assert {asked(app, "GET", path).status_code for path in opened} == {200}


def test_a_revoked_key_is_refused(tmp_path: Path) -> None:
    store = KeyStore(str(tmp_path / "keys.json"))
    key_id, key = store.create("one")
    store.revoke(key_id)
    with serving(require_key=True, keys_uri=store.uri) as (app, _):
        response = asked(app, "GET", "/v1/model", headers={"x-api-key": key})
    assert_problem(response, 401, "unauthorized")


def test_keys_that_cannot_be_read_let_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("damaged")
    with serving(require_key=True, keys_uri=str(path)) as (app, _):
        response = asked(app, "GET", "/v1/model", headers={"x-api-key": "fp_a_b"})
        assert_problem(response, 503, "keys-unavailable")
        assert str(path) not in response.text


@pytest.mark.parametrize("extension", [True, False])
def test_a_websocket_without_a_key_is_refused_at_its_handshake(
    tmp_path: Path, extension: bool
) -> None:
    store = KeyStore(str(tmp_path / "keys.json"))
    store.create("one")
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = scope_of("/v1/stream", {"sec-websocket-protocol": "fetal.key.fp_a_b"})
    scope |= {"type": "websocket", "subprotocols": ["fetal.key.fp_a_b"]}
    scope["extensions"] = {"websocket.http.response": {}} if extension else {}
    with serving(require_key=True, keys_uri=store.uri) as (app, _):
        asyncio.run(app(scope, receive, send))
    if extension:
        assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 401)
    else:
        assert [message["type"] for message in sent] == ["websocket.close"]


def test_a_websocket_with_a_key_reaches_the_stream(tmp_path: Path) -> None:
    store = KeyStore(str(tmp_path / "keys.json"))
    _, key = store.create("one")
    incoming = [{"type": "websocket.disconnect", "code": 1000}, {"type": "websocket.connect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = scope_of("/v1/stream", {"sec-websocket-protocol": f"a, fetal.key.{key}"})
    scope |= {"type": "websocket", "subprotocols": ["a", f"fetal.key.{key}"]}
    with serving(require_key=True, keys_uri=store.uri) as (app, _):
        asyncio.run(app(scope, receive, send))
    assert sent[0]["type"] == "websocket.accept"


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/model", "/nope", "/static/app.js", "/docs"])
def test_every_answer_has_security_headers(path: str) -> None:
    with serving() as (app, _):
        headers = asked(app, "GET", path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert "access-control-allow-origin" not in headers


def test_request_ids_are_taken_over_where_they_are_harmless() -> None:
    with serving() as (app, _):
        for given in ("a-1.B_2", "x" * 64):
            headers = {"x-request-id": given}
            assert asked(app, "GET", "/healthz", headers=headers).headers["x-request-id"] == given
        for given in ("", "a b", "x" * 65, 'a","status":200', "\u00e9"):
            headers = {"x-request-id": given.encode("latin-1")}
            answer = asked(app, "GET", "/healthz", headers=headers)
            assert answer.headers["x-request-id"] != given


def test_errors_of_our_own_say_nothing_of_the_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(constant_model(BrokenEngine())) as (app, _):
        response = asked(app, "POST", "/v1/predict", content=IMAGE)
    problem = assert_problem(response, 500, "internal")
    assert "RuntimeError" in caplog.text
    assert response.headers["x-request-id"] in caplog.text
    for text in (caplog.text, json.dumps(problem)):
        assert "Jane Doe" not in text
        assert "Traceback" not in text
    assert not any(record.exc_info for record in caplog.records)


def test_the_access_log_has_routes_and_no_names(caplog: pytest.LogCaptureFixture) -> None:
    part = {"file": ("jane_doe.png", b"jane_doe", "image/png")}
    with caplog.at_level(logging.DEBUG), serving() as (app, _):
        asked(app, "POST", "/v1/predict?name=jane_doe", files=part)
        asked(app, "GET", "/jane_doe.png")
        asked(app, "POST", "/v1/explain?class=jane_doe", content=b"jane_doe")
        asked(app, "GET", "/v2/models/jane_doe")
    own = [record for record in caplog.records if record.name.startswith("ray_jobs")]
    lines = [json.loads(record.getMessage()) for record in own]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/v1/predict", 400),
        ("unknown", 404),
        ("/v1/explain", 422),
        ("/v2/models/{name}", 404),
    ]
    assert all(line["duration_ms"] >= 0 and line["request_id"] for line in lines)
    assert not any("jane" in record.getMessage() for record in own)


def test_requests_are_counted_by_route_and_status() -> None:
    with serving() as (app, _):
        asked(app, "POST", "/v1/predict", content=IMAGE)
        asked(app, "POST", "/v1/predict", content=b"x")
        asked(app, "GET", "/any/thing")
        response = asked(app, "GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    for line in (
        'fetal_requests_total{route="/v1/predict",status="200"} 1.0',
        'fetal_requests_total{route="/v1/predict",status="400"} 1.0',
        'fetal_requests_total{route="unknown",status="404"} 1.0',
        'fetal_request_seconds_count{route="/v1/predict"} 2.0',
    ):
        assert line in response.text
