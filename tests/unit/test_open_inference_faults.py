"""Requests that break the Open Inference Protocol, listed and random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from builders import SIZE_PX
from data_samples import encode, texture
from infer_samples import (
    BUNDLE,
    FILES,
    PIXELS,
    element,
    files,
    infer_client,
    post,
    sized,
    tensor,
)
from live_server import toy_model
from ray_jobs.http_body import Intake
from ray_jobs.http_settings import HttpSettings
from ray_jobs.infer_request import MAX_ARRAYS, MAX_JSON_BYTES, MAX_NAMES
from ray_jobs.inference import Inference
from ray_jobs.open_inference import HEADER_LENGTH, router
from test_predict import tiff


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with infer_client(toy_model(BUNDLE)) as (_, client):
        yield client


HUGE = [1 << 32, 1 << 32, 1 << 32]
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


@pytest.fixture(scope="module")
def roomy() -> Iterator[TestClient]:
    """A client of a service with the default limits."""
    config = HttpSettings()
    inference = Inference(config, toy_model(BUNDLE))
    made = FastAPI()
    made.include_router(router(inference, config, Intake(config)))
    with TestClient(made) as http:
        yield http
    inference.close()


@pytest.mark.parametrize(
    "body",
    [
        b" " * (MAX_JSON_BYTES + 1),
        b'{"a":{' + b",".join(b'"%x":0' % name for name in range(MAX_NAMES)) + b"}}",
        b'{"inputs":[' + b"{}," * MAX_NAMES + b"{}]}",
        b'{"inputs":[' + b"[]," * MAX_ARRAYS + b"[]]}",
    ],
    ids=["bytes", "names", "objects", "arrays"],
)
def test_json_is_limited_below_the_body(roomy: TestClient, body: bytes) -> None:
    response = post(roomy, body)
    assert response.status_code == 413
    assert "binary" in response.json()["error"]


def test_json_of_many_images_by_rows_is_read(roomy: TestClient) -> None:
    images = 32
    data = np.zeros((images, SIZE_PX, SIZE_PX), np.uint8).tolist()
    response = post(roomy, {"inputs": [tensor(shape=[images, SIZE_PX, SIZE_PX], data=data)]})
    assert response.status_code == 200
    assert response.json()["outputs"][0]["shape"] == [images, 4]


def test_file_of_many_frames_is_refused_with_a_way_out(http: TestClient) -> None:
    data = tiff([texture(seed, 60, 90) for seed in range(2)])
    response = post(http, {"inputs": [files([1], len(data) + 4)]}, element(data))
    assert response.status_code == 400
    assert "/v1/predict" in response.json()["error"]


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
