"""The Open Inference Protocol, by the public client tritonclient and by hostile requests."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from builders import CLASSES, SIZE_PX, toy_bundle, toy_images
from data_samples import encode, texture
from fetal_core.images import ImageLimits, decode
from fetal_core.predict import Predictor
from fetal_core.preprocess import preprocess
from live_server import serving, toy_model
from ray_jobs.http_settings import HttpSettings
from ray_jobs.infer_request import MAX_JSON_BYTES
from ray_jobs.inference import Inference
from ray_jobs.open_inference import HEADER_LENGTH, router
from test_predict import tiff

BUNDLE = toy_bundle()
PREDICTOR = Predictor(BUNDLE)
SETTINGS = HttpSettings(
    max_files=4, queue_size=4, max_body_bytes=100_000, limits=ImageLimits(max_pixels=90 * 90)
)
IMAGES_NHW = toy_images(np.arange(3), seed=0)
FILES = [encode(texture(seed, 60, 90), "PNG") for seed in range(3)]
INFER = "/v2/models/planes/infer"


@pytest.fixture(scope="module")
def inference() -> Iterator[Inference]:
    made = Inference(SETTINGS, toy_model(BUNDLE))
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(inference: Inference) -> FastAPI:
    made = FastAPI()
    made.include_router(router(inference, SETTINGS))
    return made


@pytest.fixture(scope="module")
def http(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[triton.InferenceServerClient]:
    with serving(app) as address, triton.InferenceServerClient(address) as made:
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


def tensor(**changes: Any) -> dict[str, Any]:
    found = {"name": "image", "datatype": "UINT8", "shape": [1, SIZE_PX, SIZE_PX]}
    found["data"] = [0] * SIZE_PX**2
    return {key: value for key, value in (found | changes).items() if value is not None}


def post(http: TestClient, request: Any, rest: bytes = b"", **headers: str) -> Any:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    if rest:
        headers = {HEADER_LENGTH: str(len(body))} | headers
    return http.post(INFER, content=body + rest, headers=headers)


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


def element(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(data) if length is None else length) + data


def sized(shape: list[Any], size: Any) -> dict[str, Any]:
    return tensor(shape=shape, data=None, parameters={"binary_data_size": size})


def files(shape: list[Any], size: int) -> dict[str, Any]:
    return sized(shape, size) | {"name": "bytes", "datatype": "BYTES"}


HUGE = [1 << 32, 1 << 32, 1 << 32]
PIXELS = SIZE_PX**2
FAULTS: list[tuple[Any, bytes, int, str]] = [
    (b"", b"", 400, "not valid JSON"),
    (b"\xff\xfe{}", b"", 400, "not valid JSON"),
    (b"[" * 100_000, b"", 400, "not valid JSON"),
    (b'{"id": ' + b"9" * 5000 + b"}", b"", 400, "not valid JSON"),
    (b'{"inputs": [NaN]}', b"", 400, "NaN"),
    ([], b"", 400, "JSON object"),
    ({}, b"", 400, "inputs"),
    ({"inputs": {}}, b"", 400, "inputs"),
    ({"inputs": []}, b"", 400, "one input"),
    ({"inputs": [tensor(), tensor()]}, b"", 400, "one input"),
    ({"inputs": [tensor(name="\ud800")]}, b"", 400, "no input"),
    ({"inputs": [tensor(name=["image"])]}, b"", 400, "no input"),
    ({"inputs": [tensor(datatype="FP32")]}, b"", 400, "UINT8"),
    ({"inputs": [tensor(shape=None)]}, b"", 400, "shape"),
    ({"inputs": [tensor(shape=[])]}, b"", 400, "shape"),
    ({"inputs": [tensor(shape=[1.0, SIZE_PX, SIZE_PX])]}, b"", 400, "shape"),
    ({"inputs": [tensor(shape=[True, SIZE_PX, SIZE_PX])]}, b"", 400, "shape"),
    ({"inputs": [tensor(shape=[-1, SIZE_PX, SIZE_PX])]}, b"", 400, "one image or more"),
    ({"inputs": [tensor(shape=[0, SIZE_PX, SIZE_PX], data=[])]}, b"", 400, "one image or more"),
    ({"inputs": [tensor(shape=HUGE)]}, b"", 400, "shape"),
    ({"inputs": [tensor(shape=[1 << 70, SIZE_PX, SIZE_PX])]}, b"", 413, "limit of 4"),
    ({"inputs": [tensor(shape=[2, SIZE_PX, SIZE_PX])]}, b"", 400, "2048 values"),
    ({"inputs": [tensor(data=None)]}, b"", 400, "1024 values"),
    ({"inputs": [tensor(data="0" * PIXELS)]}, b"", 400, "1024 values"),
    ({"inputs": [tensor(data=[[[0] * SIZE_PX] * 31 + [[0] * 31]])]}, b"", 400, "1024 values"),
    ({"inputs": [tensor(data=[256] + [0] * (PIXELS - 1))]}, b"", 400, "0 to 255"),
    ({"inputs": [tensor(data=[-1] + [0] * (PIXELS - 1))]}, b"", 400, "0 to 255"),
    ({"inputs": [tensor(data=[10**30] * PIXELS)]}, b"", 400, "0 to 255"),
    ({"inputs": [tensor(data=[True] * PIXELS)]}, b"", 400, "0 to 255"),
    ({"inputs": [tensor(data=[0.5] * PIXELS)]}, b"", 400, "0 to 255"),
    ({"inputs": [tensor(data=[{}] * PIXELS)]}, b"", 400, "0 to 255"),
    ({"inputs": [tensor(parameters=[])]}, b"", 400, "parameters"),
    ({"inputs": [tensor(parameters={"shared_memory_region": "a"})]}, b"", 400, "Shared memory"),
    ({"inputs": [tensor()]}, b"more", 400, "no input claims"),
    ({"inputs": [tensor(parameters={"binary_data_size": 4})]}, b"more", 400, "both"),
    ({"inputs": [sized([1, SIZE_PX, SIZE_PX], 9)]}, b"more", 400, "binary_data_size is 9"),
    ({"inputs": [sized([1, SIZE_PX, SIZE_PX], -4)]}, b"more", 400, "binary_data_size is -4"),
    ({"inputs": [sized([1, SIZE_PX, SIZE_PX], "4")]}, b"more", 400, "binary_data_size"),
    ({"inputs": [sized([1, SIZE_PX, SIZE_PX], 1 << 64)]}, b"more", 400, "binary_data_size"),
    ({"inputs": [sized([1, SIZE_PX, SIZE_PX], 4)]}, b"more", 400, "needs 1024 bytes"),
    ({"inputs": [files([1], 4)]}, b"\xff" * 4, 400, "ends within element 0"),
    ({"inputs": [files([1], 3)]}, b"\0" * 3, 400, "ends within element 0"),
    ({"inputs": [files([2], 5)]}, element(b"a"), 400, "ends within element 1"),
    ({"inputs": [files([1], 10)]}, element(b"a") * 2, 400, "5 bytes follow"),
    ({"inputs": [files([1], 4)]}, element(b""), 400, "no bytes"),
    ({"inputs": [files([5], 25)]}, element(b"a") * 5, 413, "limit of 4"),
    ({"inputs": [tensor(name="bytes", datatype="BYTES", shape=[1], data=["%"])]}, b"", 400, "64"),
    ({"inputs": [tensor(name="bytes", datatype="BYTES", shape=[1], data=[7])]}, b"", 400, "64"),
    ({"inputs": [tensor()], "outputs": [{"name": "heat"}]}, b"", 400, "no output 'heat'"),
    ({"inputs": [tensor()], "outputs": [{"name": "plane"}] * 2}, b"", 400, "twice"),
    ({"inputs": [tensor()], "outputs": "plane"}, b"", 400, "outputs"),
    ({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}, b"", 400, "true or false"),
    ({"inputs": [tensor()], "id": 7}, b"", 400, "id"),
]


@pytest.mark.parametrize(("request_body", "rest", "status", "reason"), FAULTS)
def test_fault_is_named_in_the_protocols_form(
    http: TestClient, request_body: Any, rest: bytes, status: int, reason: str
) -> None:
    response = post(http, request_body, rest)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert reason in response.json()["error"]
    assert len(response.content) < 400


@pytest.mark.parametrize("value", ["-1", "1e3", "0x10", "9" * 30, "", "1, 1", "99999"])
def test_header_length_must_fit_the_body(http: TestClient, value: str) -> None:
    response = post(http, {"inputs": [tensor()]}, **{HEADER_LENGTH: value})
    assert response.status_code == 400
    assert HEADER_LENGTH in response.json()["error"]


def test_sizes_are_limited(http: TestClient) -> None:
    assert post(http, b" " * 100_001).status_code == 413
    wide = [encode(texture(0, 91, 91), "PNG")]
    large = {"inputs": [files([1], 4 + len(wide[0]))]}
    response = post(http, large, element(wide[0]))
    assert response.status_code == 413
    assert "pixels" in response.json()["error"]


def test_json_is_limited_below_the_body() -> None:
    inference = Inference(HttpSettings(), toy_model(BUNDLE))
    made = FastAPI()
    made.include_router(router(inference, HttpSettings()))
    with TestClient(made) as http:
        response = post(http, b" " * (MAX_JSON_BYTES + 1))
    inference.close()
    assert response.status_code == 413
    assert "binary" in response.json()["error"]


def test_file_of_many_frames_is_refused_with_a_way_out(http: TestClient) -> None:
    data = tiff([texture(seed, 60, 90) for seed in range(2)])
    response = post(http, {"inputs": [files([1], len(data) + 4)]}, element(data))
    assert response.status_code == 400
    assert "/v1/predict" in response.json()["error"]


def test_full_queue_and_missing_model_have_their_status() -> None:
    inference = Inference(SETTINGS)
    made = FastAPI()
    made.include_router(router(inference, SETTINGS))
    with TestClient(made) as http:
        assert http.get("/v2/health/live").json() == {"live": True}
        assert http.get("/v2/health/ready").status_code == 503
        missing = post(http, {"inputs": [tensor()]})
        inference.swap(toy_model(BUNDLE))
        inference.pending = SETTINGS.queue_size
        full = post(http, {"inputs": [tensor()]})
    inference.close()
    assert (missing.status_code, list(missing.json())) == (503, ["error"])
    assert (full.status_code, list(full.json())) == (429, ["error"])
    assert int(full.headers["retry-after"]) >= 1


class ReplacedEngine:
    """Swaps another model in while it works."""

    name, size_px = "torch", SIZE_PX

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def logits(self, images_NHW: np.ndarray) -> np.ndarray:
        self._inference.swap(toy_model(BUNDLE, version="2"))
        return PREDICTOR.logits(images_NHW)


def test_swap_under_way_leaves_no_mixed_answer() -> None:
    inference = Inference(SETTINGS)
    inference.swap(toy_model(BUNDLE, ReplacedEngine(inference)))
    made = FastAPI()
    made.include_router(router(inference, SETTINGS))
    with TestClient(made) as http:
        answer = post(http, {"inputs": [tensor()]}).json()
    inference.close()
    assert answer["model_version"] == "2"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid request in which some members are replaced by anything."""
    request: dict[str, Any] = {
        "id": "a",
        "inputs": [tensor()],
        "outputs": [{"name": "plane"}],
        "parameters": {},
    }
    for owner in (request, request["inputs"][0], request["outputs"][0]):
        for key in draw(st.lists(st.sampled_from([*owner, "parameters"]), max_size=2)):
            owner[key] = draw(anything)
    return request


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mutated() | anything | st.binary(max_size=200),
    st.binary(max_size=40),
    st.none() | st.integers(-5, 3000).map(str) | st.text("0123456789 ,-+x", max_size=12),
)
def test_no_request_makes_a_server_error(
    http: TestClient, request_body: Any, rest: bytes, length: str | None
) -> None:
    headers = {} if length is None else {HEADER_LENGTH: length}
    response = post(http, request_body, rest, **headers)
    assert response.status_code in (200, 400, 413)
    if response.status_code != 200:
        assert list(response.json()) == ["error"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(FILES[0]) - 1), st.binary(min_size=1, max_size=8))
def test_damaged_files_are_answered_or_refused(http: TestClient, start: int, noise: bytes) -> None:
    data = FILES[0][:start] + noise + FILES[0][start + len(noise) :]
    response = post(http, {"inputs": [files([1], len(data) + 4)]}, element(data))
    assert response.status_code in (200, 400, 413)
