"""Requests of the Open Inference Protocol, valid and not quite."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.testclient import TestClient

from builders import SIZE_PX, toy_bundle, toy_images
from data_samples import encode, texture
from fetal_core.images import ImageLimits
from fetal_core.predict import Predictor
from ray_jobs.http_body import Intake
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from ray_jobs.open_inference import HEADER_LENGTH, router
from ray_jobs.served import ServedModel

BUNDLE = toy_bundle()
PREDICTOR = Predictor(BUNDLE)
SETTINGS = HttpSettings(
    max_files=4, queue_size=4, max_body_bytes=100_000, limits=ImageLimits(max_pixels=90 * 90)
)
IMAGES_NHW = toy_images(np.arange(3), seed=0)
FILES = [encode(texture(seed, 60, 90), "PNG") for seed in range(3)]
PIXELS = SIZE_PX**2
INFER = "/v2/models/planes/infer"


def tensor(**changes: Any) -> dict[str, Any]:
    found = {"name": "image", "datatype": "UINT8", "shape": [1, SIZE_PX, SIZE_PX]}
    found["data"] = [0] * SIZE_PX**2
    return {key: value for key, value in (found | changes).items() if value is not None}


def post(http: TestClient, request: Any, rest: bytes = b"", **headers: str) -> Any:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    if rest:
        headers = {HEADER_LENGTH: str(len(body))} | headers
    return http.post(INFER, content=body + rest, headers=headers)


def element(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(data) if length is None else length) + data


def sized(shape: list[Any], size: Any) -> dict[str, Any]:
    return tensor(shape=shape, data=None, parameters={"binary_data_size": size})


def files(shape: list[Any], size: int) -> dict[str, Any]:
    return sized(shape, size) | {"name": "bytes", "datatype": "BYTES"}


@contextmanager
def infer_client(model: ServedModel | None) -> Iterator[tuple[Inference, TestClient]]:
    """A client of the protocol's routes alone, and the inference behind them."""
    inference = Inference(SETTINGS, model)
    app = FastAPI()
    app.include_router(router(inference, SETTINGS, Intake(SETTINGS)))
    with TestClient(app) as http:
        yield inference, http
    inference.close()
