"""The HTTP interface: answers, states of the service, models and its own description."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI

from builders import CLASSES, toy_bundle
from data_samples import encode, texture
from fetal_core.bundle import Bundle
from fetal_core.images import decode
from fetal_core.predict import Predictor
from ray_jobs.http_models import PredictAnswer
from ray_jobs.inference import Inference
from serving_samples import (
    MODEL,
    ConstantEngine,
    asked,
    assert_problem,
    cine,
    client,
    constant_model,
    leaving,
    scope_of,
    serving,
    tiff,
    torch_model,
)

IMAGE = encode(texture(0, 60, 90))


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
        async with client(app) as session:
            first = asyncio.create_task(session.post("/v1/predict", content=IMAGE))
            assert await asyncio.to_thread(engine.started.wait, 10)
            second = asyncio.create_task(app(scope_of("/v1/predict"), leaving(IMAGE, gone), send))
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


def replace_files(folder: Path) -> None:
    """As training into the same folder again does."""
    bundle = toy_bundle()
    bundle.model.head.weight.data.neg_()
    bundle.save(str(folder))


def test_explanations_are_of_the_weights_that_answer(tmp_path: Path) -> None:
    untouched, replaced = torch_model(tmp_path / "a"), torch_model(tmp_path / "b")
    replace_files(tmp_path / "b")
    found = []
    for model in (untouched, replaced):
        with serving(model) as (app, _):
            found.append(asked(app, "POST", "/v1/explain?class=femur", content=IMAGE).content)
    assert found[0] == found[1]


@pytest.mark.parametrize("change", [replace_files, shutil.rmtree])
def test_explanations_by_other_weights_than_the_engines_are_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    model = replace(torch_model(tmp_path), engine=ConstantEngine())
    change(tmp_path)
    with serving(model) as (app, _):
        refused = asked(app, "POST", "/v1/explain", content=IMAGE)
        assert asked(app, "POST", "/v1/predict", content=IMAGE).status_code == 200
    assert "have changed" in assert_problem(refused, 503, "not-ready")["detail"]
    assert str(tmp_path) not in refused.text


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
        script = asked(app, "GET", "/static/docs.js").text
    assert "static/docs.js" in page
    assert "openapi.json" in script
    for text in (page, script):
        assert "http://" not in text
        assert "https://" not in text
