"""The Open Inference Protocol, by the public client tritonclient."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from fastapi import FastAPI
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from builders import CLASSES, SIZE_PX
from data_samples import encode, texture
from fetal_core.image_limits import ImageLimits
from fetal_core.images import decode
from fetal_core.preprocess import preprocess
from infer_samples import (
    BUNDLE,
    FILES,
    IMAGES_NHW,
    INFER,
    PREDICTOR,
    element,
    files,
    infer_client,
    post,
    tensor,
)
from live_server import serving, toy_model
from ray_jobs.inference import Inference
from ray_jobs.open_inference import HEADER_LENGTH
from serving_samples import ConstantEngine, asked, constant_model, leaving, scope_of
from serving_samples import client as asgi_client
from serving_samples import serving as application


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with infer_client(toy_model(BUNDLE)) as (_, client):
        yield client


@pytest.fixture(scope="module")
def client(http: TestClient) -> Iterator[triton.InferenceServerClient]:
    with serving(http.app) as address, triton.InferenceServerClient(address) as made:
        yield made


def image_input(binary: bool = True, images_NHW: np.ndarray = IMAGES_NHW) -> triton.InferInput:
    found = triton.InferInput("image", list(images_NHW.shape), "UINT8")
    return found.set_data_from_numpy(images_NHW, binary_data=binary)


def file_input(files: list[bytes], binary: bool = True) -> triton.InferInput:
    found = triton.InferInput("bytes", [len(files)], "BYTES")
    if not binary:
        files = [base64.b64encode(data) for data in files]
    return found.set_data_from_numpy(np.array(files, dtype=object), binary_data=binary)


def outputs(binary: bool) -> list[triton.InferRequestedOutput]:
    names = ("plane", "logits", "probabilities")
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def texts(array: np.ndarray) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else item for item in array]


def check_answer(answer: triton.InferResult, images_NHW: np.ndarray) -> None:
    logits_NK = PREDICTOR.logits(images_NHW)
    rows_NK = PREDICTOR.probabilities(logits_NK)
    np.testing.assert_allclose(answer.as_numpy("logits"), logits_NK, atol=1e-5)
    np.testing.assert_allclose(answer.as_numpy("probabilities"), rows_NK, atol=1e-5)
    assert texts(answer.as_numpy("plane")) == [CLASSES[best] for best in rows_NK.argmax(axis=1)]


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("planes")
    assert client.is_model_ready("planes", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("planes", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("planes") == {
        "name": "planes",
        "versions": ["1"],
        "platform": "torch",
        "inputs": [
            {"name": "image", "datatype": "UINT8", "shape": [-1, SIZE_PX, SIZE_PX]},
            {"name": "bytes", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "plane", "datatype": "BYTES", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_images_are_answered_as_by_the_predictor(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    answer = client.infer(
        "planes", [image_input(binary_in)], outputs=outputs(binary_out), request_id="r-7"
    )
    check_answer(answer, IMAGES_NHW)
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == (
        "r-7",
        "planes",
        "1",
    )
    assert [output["name"] for output in response["outputs"]] == [
        "plane",
        "logits",
        "probabilities",
    ]


@pytest.mark.parametrize("binary", [True, False])
def test_files_are_decoded_and_answered(client: triton.InferenceServerClient, binary: bool) -> None:
    answer = client.infer("planes", [file_input(FILES, binary)], model_version="1")
    images = [preprocess(decode(data), BUNDLE.info.preprocess) for data in FILES]
    check_answer(answer, np.stack(images))


def test_client_sees_the_reason_of_an_error(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Element 1: the content is not") as caught:
        client.infer("planes", [file_input([FILES[0], b"no image"])])
    assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="Compressed") as caught:
        client.infer("planes", [image_input()], request_compression_algorithm="gzip")
    assert caught.value.status() == "415"


def test_nested_and_flat_data_are_the_same(http: TestClient) -> None:
    nested, flat = IMAGES_NHW[:2].tolist(), IMAGES_NHW[:2].ravel().tolist()
    shape = [2, SIZE_PX, SIZE_PX]
    answers = [
        post(http, {"inputs": [tensor(shape=shape, data=data)]}).json() for data in (nested, flat)
    ]
    assert answers[0] == answers[1]
    assert answers[0]["outputs"][0]["shape"] == [2, 4]
    assert "id" not in answers[0]


def test_binary_and_json_outputs_may_be_mixed(http: TestClient) -> None:
    request = {
        "inputs": [tensor()],
        "outputs": [
            {"name": "plane", "parameters": {"binary_data": False}},
            {"name": "logits"},
            {"name": "probabilities", "parameters": {"binary_data": True}},
        ],
        "parameters": {"binary_data_output": True, "colour": "blue"},
    }
    response = post(http, request)
    size = int(response.headers[HEADER_LENGTH])
    found = json.loads(response.content[:size])["outputs"]
    assert found[0]["data"][0] in CLASSES
    assert [one.get("parameters") for one in found[1:]] == [{"binary_data_size": 16}] * 2
    values = struct.unpack("<8f", response.content[size:])
    black_1HW = np.zeros((1, SIZE_PX, SIZE_PX), np.uint8)
    np.testing.assert_allclose(values[:4], PREDICTOR.logits(black_1HW)[0], atol=1e-5)


def test_missing_model_has_its_status() -> None:
    with infer_client(None) as (_, http):
        assert http.get("/v2/health/live").json() == {"live": True}
        assert http.get("/v2/health/ready").status_code == 503
        missing = post(http, {"inputs": [tensor()]})
    assert (missing.status_code, list(missing.json())) == (503, ["error"])


class HeldDecoder:
    """Decodes when it may, and counts the files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = 0
        self.started = threading.Event()
        self.go = threading.Event()
        monkeypatch.setattr("ray_jobs.open_inference.decode", self._decode)

    def _decode(self, data: bytes, limits: ImageLimits) -> np.ndarray:
        self.files += 1
        self.started.set()
        assert self.go.wait(30)
        return decode(data, limits)


def files_body(count: int) -> tuple[bytes, dict[str, str]]:
    """A request with some files, and its header."""
    rest = b"".join(map(element, FILES[:count]))
    request = json.dumps({"inputs": [files([count], len(rest))]}).encode()
    return request + rest, {HEADER_LENGTH: str(len(request))}


def test_files_are_counted_in_the_queue_while_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = HeldDecoder(monkeypatch)

    async def ask(app: FastAPI) -> tuple[httpx.Response, httpx.Response]:
        async with asgi_client(app) as session:
            body, headers = files_body(3)
            first = asyncio.create_task(session.post(INFER, content=body, headers=headers))
            assert await asyncio.to_thread(decoder.started.wait, 10)
            body, headers = files_body(2)
            refused = await session.post(INFER, content=body, headers=headers)
            decoder.go.set()
            return await first, refused

    with application(toy_model(BUNDLE), max_files=4, queue_size=4) as (app, inference):
        answered, refused = asyncio.run(ask(app))
        assert inference.pending == 0
    assert answered.status_code == 200
    assert (refused.status_code, list(refused.json())) == (429, ["error"])
    assert int(refused.headers["retry-after"]) >= 1
    assert decoder.files == 3


def test_a_request_may_have_as_many_files_as_the_queue_takes() -> None:
    body, headers = files_body(3)
    with application(toy_model(BUNDLE), max_files=3, queue_size=3) as (app, inference):
        answered = asked(app, "POST", INFER, content=body, headers=headers)
        assert inference.pending == 0
    assert answered.status_code == 200


def test_requests_are_read_by_the_decoding_threads_and_counted_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = HeldDecoder(monkeypatch)

    async def ask(app: FastAPI, inference: Inference) -> list[int]:
        async with asgi_client(app) as session:
            body, headers = files_body(1)
            first = asyncio.create_task(session.post(INFER, content=body, headers=headers))
            assert await asyncio.to_thread(decoder.started.wait, 10)
            request = {"inputs": [tensor()]}
            second = asyncio.create_task(session.post(INFER, json=request))
            async with asyncio.timeout(10):
                while inference.pending < 2:
                    await asyncio.sleep(0.01)
            third = await session.post(INFER, json=request)
            assert not second.done()
            decoder.go.set()
            return [found.status_code for found in (await first, await second, third)]

    settings = {"max_files": 2, "queue_size": 2, "decode_threads": 1}
    with application(toy_model(BUNDLE), **settings) as (app, inference):
        assert asyncio.run(ask(app, inference)) == [200, 200, 429]


def test_bodies_of_both_protocols_together_are_bounded() -> None:
    engine = ConstantEngine(held=True)
    data = encode(texture(0, 60, 90), "BMP")

    async def ask(app: FastAPI) -> list[int]:
        async with asgi_client(app) as session:
            first = asyncio.create_task(session.post("/v1/predict", content=data))
            assert await asyncio.to_thread(engine.started.wait, 10)
            refused = await session.post("/v2/models/toy/infer", content=bytes(len(data)))
            engine.go.set()
            answered = await first
            read = await session.post("/v2/models/toy/infer", content=bytes(len(data)))
            return [found.status_code for found in (answered, refused, read)]

    limits = {"max_buffered_bytes": 2 * len(data) - 1, "max_body_bytes": len(data)}
    with application(constant_model(engine), **limits) as (app, _):
        assert asyncio.run(ask(app)) == [200, 429, 400]


def test_a_body_is_not_kept_beside_the_files_that_were_read_from_it() -> None:
    engine, sent, held_bytes = ConstantEngine(held=True), list[Any](), 0
    file = element(encode(texture(0, 1000, 1000), "BMP"))
    request = json.dumps({"inputs": [files([1], len(file))]}).encode()
    body = request + file
    chunks = iter(range(0, len(body), 65536))

    async def receive() -> Any:
        if (start := next(chunks, None)) is None:
            await asyncio.Event().wait()
        chunk = body[start : start + 65536]
        return {"type": "http.request", "body": chunk, "more_body": start + 65536 < len(body)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask(app: FastAPI) -> None:
        nonlocal held_bytes
        tracemalloc.start()
        try:
            headers = {HEADER_LENGTH: str(len(request))}
            scope = scope_of("/v2/models/toy/infer", headers)
            asking = asyncio.create_task(app(scope, receive, send))
            assert await asyncio.to_thread(engine.started.wait, 10)
            held_bytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        engine.go.set()
        await asyncio.wait_for(asking, 10)

    with application(constant_model(engine)) as (app, _):
        asyncio.run(ask(app))
    assert sent[0]["status"] == 200
    assert held_bytes < 1.5 * len(body)


def test_a_client_that_goes_leaves_its_files_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, sent = HeldDecoder(monkeypatch), list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask(app: FastAPI, inference: Inference) -> None:
        gone = asyncio.Event()
        body, headers = files_body(3)
        asking = asyncio.create_task(app(scope_of(INFER, headers), leaving(body, gone), send))
        assert await asyncio.to_thread(decoder.started.wait, 10)
        gone.set()
        await asyncio.wait_for(asking, 10)
        assert inference.pending == 0
        decoder.go.set()

    with application(toy_model(BUNDLE), decode_threads=1) as (app, inference):
        asyncio.run(ask(app, inference))
    assert sent == []
    assert decoder.files == 1


class ReplacedEngine:
    """Swaps another model in while it works."""

    name, size_px = "torch", SIZE_PX

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def logits(self, images_NHW: np.ndarray) -> np.ndarray:
        self._inference.swap(toy_model(BUNDLE, version="2"))
        return PREDICTOR.logits(images_NHW)


def test_a_request_ends_with_the_model_that_it_began_with() -> None:
    with infer_client(None) as (inference, http):
        inference.swap(toy_model(BUNDLE, ReplacedEngine(inference), version="1"))
        versions = [post(http, {"inputs": [tensor()]}).json()["model_version"] for _ in range(2)]
    assert versions == ["1", "2"]
