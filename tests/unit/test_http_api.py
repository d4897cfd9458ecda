"""The HTTP interface: answers, every kind of refusal, keys, headers and what is logged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI

from builders import CLASSES
from data_samples import encode, texture
from fetal_core.api_keys import KeyStore
from fetal_core.bundle import Bundle
from fetal_core.images import ImageLimits, decode
from fetal_core.predict import Predictor
from ray_jobs.http_api import create_app
from ray_jobs.http_models import PredictAnswer
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference, ServedModel
from serving_samples import (
    BrokenEngine,
    ConstantEngine,
    asked,
    cine,
    client,
    constant_model,
    tiff,
    torch_model,
)

IMAGE = encode(texture(0, 60, 90))
MODEL = constant_model(ConstantEngine())


@contextmanager
def serving(
    model: ServedModel | None = MODEL, **settings: Any
) -> Iterator[tuple[FastAPI, Inference]]:
    config = HttpSettings(**settings)
    inference = Inference(config, model)
    try:
        yield create_app(inference, config), inference
    finally:
        inference.close()


def scope_of(path: str, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    encoded = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": encoded,
        "client": ("127.0.0.1", 1),
        "server": ("service", 80),
    } | more


def assert_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:fetal:problem:{kind}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert response.headers["x-request-id"] in problem["instance"]
    return problem


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (IMAGE, "image/png"),
        (IMAGE, None),
        (tiff(2), "application/octet-stream"),
        (cine(5), "application/dicom"),
    ],
)
def test_a_raw_body_is_answered_as_by_fetal_predict(
    tmp_path: Path, data: bytes, media_type: str | None
) -> None:
    model = torch_model(tmp_path)
    headers = {"content-type": media_type} if media_type else {}
    with serving(model) as (app, _):
        response = asked(app, "POST", "/v1/predict", content=data, headers=headers)
    assert response.status_code == 200
    answer = PredictAnswer.model_validate(response.json())
    expected = Predictor(Bundle.load(model.uri)).predict_bytes(data)
    assert (answer.model.name, answer.model.version) == ("toy", "1")
    assert len(answer.results) == 1
    for frame, found in zip(answer.results[0].frames, expected, strict=True):
        assert (frame.frame, frame.plane, frame.decision) == (
            found.frame,
            found.plane,
            found.decision,
        )
        assert frame.probabilities == pytest.approx(found.probabilities, abs=1e-4)
    assert answer.timings_ms.total >= answer.timings_ms.engine > 0


def test_parts_are_answered_in_their_order(tmp_path: Path) -> None:
    model = torch_model(tmp_path)
    contents = [encode(texture(seed, 50, 70), "JPEG") for seed in range(5)] + [tiff(3)]
    parts = [("files" if i % 2 else "file", ("n.png", data)) for i, data in enumerate(contents)]
    with serving(model) as (app, _):
        response = asked(app, "POST", "/v1/predict", files=parts)
    results = PredictAnswer.model_validate(response.json()).results
    assert [result.index for result in results] == list(range(6))
    predictor = Predictor(Bundle.load(model.uri))
    for result, data in zip(results, contents, strict=True):
        expected = [found.probabilities for found in predictor.predict_bytes(data)]
        assert len(result.frames) == len(expected)
        for frame, probabilities in zip(result.frames, expected, strict=True):
            assert frame.probabilities == pytest.approx(probabilities, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "media_type", "status", "kind"),
    [
        (b"", "image/png", 400, "empty-image"),
        (b"GIF89a" + bytes(50), "image/gif", 400, "not-an-image"),
        (IMAGE[: len(IMAGE) // 2], "image/png", 400, "truncated-image"),
        (IMAGE[:60] + b"\xff" + IMAGE[61:], "image/png", 400, "unreadable-image"),
        (encode(texture(0, 10, 40)), "image/png", 400, "too-small"),
        (encode(texture(0, 101, 101)), "image/png", 413, "too-large"),
        (tiff(4), "image/tiff", 413, "too-large"),
        (bytes(40_001), "image/png", 413, "too-large"),
        (IMAGE, "text/plain", 415, "unsupported-media-type"),
        (IMAGE, "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
        (b"x", "multipart/form-data", 422, "malformed-request"),
        (b"x", "multipart/form-data; boundary=" + 71 * "b", 422, "malformed-request"),
        (b"no boundary", "multipart/form-data; boundary=b", 422, "malformed-request"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422, "malformed-request"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 422, "malformed-request"),
    ],
)
def test_bodies_that_are_refused(body: bytes, media_type: str, status: int, kind: str) -> None:
    limits = ImageLimits(max_pixels=10_000, max_frames=3)
    with serving(limits=limits, max_body_bytes=40_000) as (app, _):
        response = asked(
            app, "POST", "/v1/predict", content=body, headers={"content-type": media_type}
        )
        assert "index" not in assert_problem(response, status, kind)


def multipart(*heads: str, end: str = "--b--\r\n") -> dict[str, Any]:
    """A request whose parts are all the same image under other heads."""
    parts = [b"--b\r\n" + head.encode() + b"\r\n\r\n" + IMAGE + b"\r\n" for head in heads]
    body = b"".join(parts) + end.encode()
    return {"content": body, "headers": {"content-type": "multipart/form-data; boundary=b"}}


FILE = 'Content-Disposition: form-data; name="file"; filename="x"'


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (multipart(FILE, FILE), 200, ""),
        (multipart("CONTENT-disposition: form-data; NAME=files"), 200, ""),
        (multipart(FILE, FILE, FILE, FILE), 413, "too-many-files"),
        (multipart(FILE, end=""), 422, "malformed-request"),
        (multipart(FILE, end="--b-"), 422, "malformed-request"),
        (multipart(FILE.replace("file", "image", 1)), 422, "malformed-request"),
        (multipart("Content-Disposition: attachment; name=file"), 422, "malformed-request"),
        (multipart("Content-Type: image/png"), 422, "malformed-request"),
        (multipart(FILE + "\r\nX: " + 9000 * "y"), 422, "malformed-request"),
        (multipart("\r\n".join([FILE] + 50 * ["X: y"])), 422, "malformed-request"),
    ],
)
def test_multipart_bodies_are_bounded_and_checked(
    request_: dict[str, Any], status: int, kind: str
) -> None:
    with serving(max_files=3) as (app, _):
        response = asked(app, "POST", "/v1/predict", **request_)
    if kind:
        assert_problem(response, status, kind)
    else:
        assert response.status_code == status


def test_one_bad_part_is_named_by_its_index() -> None:
    parts = [("file", ("a", IMAGE)), ("file", ("b", IMAGE)), ("file", ("c", b"text"))]
    with serving() as (app, _):
        problem = assert_problem(
            asked(app, "POST", "/v1/predict", files=parts), 400, "not-an-image"
        )
    assert problem["index"] == 2


def test_a_long_body_is_refused_by_its_head_before_it_is_read() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    with serving(max_body_bytes=100) as (app, _):
        scope = scope_of("/v1/predict", {"content-length": "101"})
        asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413


def test_an_endless_body_is_refused_at_the_limit() -> None:
    chunks, sent = 0, []

    async def receive() -> Any:
        nonlocal chunks
        chunks += 1
        return {"type": "http.request", "body": bytes(10), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    with serving(max_body_bytes=100) as (app, _):
        asyncio.run(app(scope_of("/v1/predict"), receive, send))
    assert sent[0]["status"] == 413
    assert chunks == 11


def test_a_slow_body_is_given_up() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    with serving(body_timeout_s=0.1) as (app, _):
        asyncio.run(app(scope_of("/v1/predict"), receive, send))
    assert sent[0]["status"] == 408


def test_bodies_of_all_requests_together_are_bounded() -> None:
    engine = ConstantEngine(held=True)
    data = encode(texture(0, 60, 90), "BMP")

    async def ask(app: FastAPI, inference: Inference) -> None:
        async with client(app) as session:
            first = asyncio.create_task(session.post("/v1/predict", content=data))
            assert await asyncio.to_thread(engine.started.wait, 10)
            refused = await session.post("/v1/predict", content=data)
            assert_problem(refused, 429, "queue-full")
            engine.go.set()
            assert (await first).status_code == 200
            assert (await session.post("/v1/predict", content=data)).status_code == 200

    size = len(data)
    with serving(constant_model(engine), max_buffered_bytes=2 * size - 1, max_body_bytes=size) as (
        app,
        inference,
    ):
        asyncio.run(ask(app, inference))


def test_a_full_queue_answers_429_with_a_time_to_come_back() -> None:
    engine = ConstantEngine(held=True)

    async def ask(app: FastAPI) -> None:
        async with client(app) as session:
            first = asyncio.create_task(session.post("/v1/predict", content=IMAGE))
            assert await asyncio.to_thread(engine.started.wait, 10)
            for path in ("/v1/predict", "/v1/explain"):
                response = await session.post(path, content=IMAGE)
                assert_problem(response, 429, "queue-full")
                assert 1 <= int(response.headers["retry-after"]) <= 60
            engine.go.set()
            assert (await first).status_code == 200

    with serving(constant_model(engine), queue_size=1, max_files=1) as (app, _):
        asyncio.run(ask(app))


def test_slow_answers_become_504() -> None:
    engine = ConstantEngine(held=True)
    with serving(constant_model(engine), timeout_s=0.2) as (app, _):
        response = asked(app, "POST", "/v1/predict", content=IMAGE)
        engine.go.set()
    assert_problem(response, 504, "too-slow")


def test_without_a_model_the_service_lives_but_is_not_ready() -> None:
    with serving(None) as (app, inference):
        assert asked(app, "GET", "/healthz").status_code == 200
        for method, path in (
            ("GET", "/readyz"),
            ("GET", "/v1/model"),
            ("POST", "/v1/predict"),
            ("POST", "/v1/explain"),
        ):
            assert_problem(asked(app, method, path), 503, "not-ready")
        assert asked(app, "GET", "/v1/models").json() == {"models": []}
        inference.swap(MODEL)
        assert asked(app, "GET", "/readyz").json() == {"status": "ready"}
        assert asked(app, "GET", "/v1/models").json() == {
            "models": [{"name": "toy", "version": "1"}]
        }


def test_unknown_addresses_and_methods() -> None:
    with serving() as (app, _):
        for path in ("/nope", "/v1/predict/", "/static/..%2fhttp_api.py", "/static/%00"):
            assert_problem(asked(app, "GET", path), 404, "not-found")
        response = asked(app, "GET", "/v1/predict")
        assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_a_client_that_goes_takes_its_work_along() -> None:
    engine = ConstantEngine(held=True)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask(app: FastAPI, inference: Inference) -> None:
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": IMAGE, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async with client(app) as session:
            first = asyncio.create_task(session.post("/v1/predict", content=IMAGE))
            assert await asyncio.to_thread(engine.started.wait, 10)
            second = asyncio.create_task(app(scope_of("/v1/predict"), receive, send))
            while not inference.waiting:
                await asyncio.sleep(0.01)
            gone.set()
            await second
            engine.go.set()
            assert (await first).status_code == 200

    with serving(constant_model(engine)) as (app, inference):
        asyncio.run(ask(app, inference))
        text = inference.metrics.text().decode()
    assert sent == []
    assert engine.batches == [1]
    assert 'fetal_requests_total{route="/v1/predict",status="499"} 1.0' in text


def test_swap_under_load_loses_no_request() -> None:
    models = [constant_model(ConstantEngine(best), str(best)) for best in (0, 1)]

    async def caller(session: httpx.AsyncClient, found: list[dict[str, Any]]) -> None:
        for _ in range(15):
            response = await session.post("/v1/predict", content=IMAGE)
            assert response.status_code == 200
            found.append(response.json())

    async def ask(app: FastAPI, inference: Inference) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with client(app) as session:
            callers = [asyncio.create_task(caller(session, found)) for _ in range(16)]
            for turn in range(40):
                await asyncio.sleep(0.01)
                inference.swap(models[turn % 2])
            await asyncio.gather(*callers)
        return found

    with serving(models[0]) as (app, inference):
        found = asyncio.run(ask(app, inference))
    assert len(found) == 15 * 16
    assert {answer["model"]["version"] for answer in found} == {"0", "1"}
    for answer in found:
        plane = answer["results"][0]["frames"][0]["plane"]
        assert plane == CLASSES[int(answer["model"]["version"])]


def test_explanations(tmp_path: Path) -> None:
    with serving(torch_model(tmp_path)) as (app, _):
        response = asked(app, "POST", "/v1/explain?class=femur&frame=1", content=tiff(2))
        assert response.headers["content-type"] == "image/png"
        assert decode(response.content).shape == texture(0).shape
        part = asked(app, "POST", "/v1/explain?class=femur", files={"file": IMAGE})
        assert part.content == asked(app, "POST", "/v1/explain?class=femur", content=IMAGE).content
        for query in (
            "class=nose",
            "class=%ff",
            "frame=2",
            "frame=-1",
            "frame=x",
            f"frame={10**30}",
        ):
            refused = asked(app, "POST", f"/v1/explain?{query}", content=tiff(2))
            assert_problem(refused, 422, "malformed-request")
        two = [("file", IMAGE), ("file", IMAGE)]
        assert_problem(asked(app, "POST", "/v1/explain", files=two), 422, "malformed-request")
        assert_problem(asked(app, "POST", "/v1/explain", content=b"x"), 400, "not-an-image")


def test_the_card_of_the_model(tmp_path: Path) -> None:
    metrics = {"test": {"accuracy": 0.9, "ece": float("nan")}}
    model = torch_model(tmp_path, metrics=metrics, recipe={"images": "/home/jane/images"})
    with serving(model) as (app, _):
        response = asked(app, "GET", "/v1/model")
    card = response.json()
    assert card["classes"] == list(CLASSES)
    assert card["metrics"] == {"test": {"accuracy": 0.9, "ece": None}}
    assert card["hashes"] == model.info.hashes
    assert (card["engine"], card["calibrated"], card["threshold"]) == ("torch", True, 0.5)
    assert "jane" not in response.text
    assert str(tmp_path) not in response.text


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


def test_the_openapi_document_is_valid_and_describes_the_answers(tmp_path: Path) -> None:
    with serving(torch_model(tmp_path)) as (app, _):
        document = asked(app, "GET", "/openapi.json").json()
        answers = {
            ("/v1/predict", "post"): asked(app, "POST", "/v1/predict", content=IMAGE),
            ("/v1/model", "get"): asked(app, "GET", "/v1/model"),
            ("/v1/models", "get"): asked(app, "GET", "/v1/models"),
            ("/readyz", "get"): asked(app, "GET", "/readyz"),
        }
        bad = asked(app, "POST", "/v1/predict", content=b"x").json()
    OpenAPI.model_validate(document)
    names = [op["operationId"] for methods in document["paths"].values() for op in methods.values()]
    assert len(names) == len(set(names))
    for (path, method), response in answers.items():
        described = document["paths"][path][method]["responses"]["200"]["content"]
        schema = described["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.validate(response.json(), schema)
    problem = document["paths"]["/v1/predict"]["post"]["responses"]["400"]["content"]
    jsonschema.validate(bad, problem["application/problem+json"]["schema"])


def test_the_description_needs_no_other_host() -> None:
    with serving() as (app, _):
        page = asked(app, "GET", "/docs").text
    assert "POST /v1/predict" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
