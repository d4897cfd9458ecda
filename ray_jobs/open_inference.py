"""The Open Inference Protocol v2 of KServe over HTTP, for clients that speak it already."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from functools import partial
from importlib.metadata import version as distribution_version
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from numpy.typing import NDArray

from fetal_core.calibrate import apply_temperature
from fetal_core.errors import FetalError, ImageError
from fetal_core.image_limits import ImageLimits
from fetal_core.images import decode, probe
from fetal_core.preprocess import PreprocessConfig, preprocess
from ray_jobs.gone import unless_gone
from ray_jobs.http_body import Body, Intake
from ray_jobs.http_settings import HttpSettings
from ray_jobs.infer_request import (
    BYTES,
    IMAGE,
    OUTPUTS,
    InferRequest,
    encode_answer,
    parse_request,
)
from ray_jobs.inference import Inference
from ray_jobs.problems import MEDIA_TYPE, ProblemError, problem_of
from ray_jobs.served import ServedModel
from ray_jobs.serving_errors import FileError
from ray_jobs.tensors import ProtocolError

HEADER_LENGTH = "Inference-Header-Content-Length"
_MODEL = "/models/{name}"
_VERSION = "/models/{name}/versions/{version}"
_FAULTS = {
    400: "The request does not follow the protocol, or a file is not an image",
    404: "No such model or version",
    408: "The body did not arrive in time",
    413: "The request is larger than allowed",
    415: "The body is compressed",
    429: "The queue is full",
    503: "No model is loaded",
    504: "The answer took too long",
}
_FAULT_SCHEMA = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _FAULT_SCHEMA}}}
    for status, text in _FAULTS.items()
}
_RESPONSES[401] = {"description": "No valid API key", "content": {MEDIA_TYPE: {}}}
_READINESS: dict[int | str, dict[str, Any]] = {
    503: {"description": "No model is loaded", "content": {"application/json": {}}}
}
_INFERRED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs asked for, as JSON or with binary data behind it",
        "content": {"application/json": {}, "application/octet-stream": {}},
    }
}
_INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": {"type": "object"}},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                    "required": ["inputs"],
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def router(inference: Inference, settings: HttpSettings, intake: Intake) -> APIRouter:
    """Routes under ``/v2``: health, metadata and inference, with binary tensor data."""
    routes = APIRouter(
        prefix="/v2", tags=["open inference protocol"], route_class=_Route, responses=_RESPONSES
    )

    @routes.get("")
    async def server_metadata() -> Response:
        return _json(
            {
                "name": "fetal-planes",
                "version": distribution_version("fetal-planes"),
                "extensions": ["binary_tensor_data"],
            }
        )

    @routes.get("/health/live")
    async def live() -> Response:
        return _json({"live": True})

    @routes.get("/health/ready", responses=_READINESS)
    async def ready() -> Response:
        return _json({"ready": inference.ready}, 200 if inference.ready else 503)

    @routes.get(_MODEL)
    @routes.get(_VERSION)
    async def model_metadata(name: str, version: str | None = None) -> Response:
        return _json(_described(_served(inference, name, version)))

    @routes.get(f"{_MODEL}/ready")
    @routes.get(f"{_VERSION}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        return _json({"name": _served(inference, name, version).name, "ready": True})

    @routes.post(f"{_MODEL}/infer", responses=_INFERRED, openapi_extra=_INFER_BODY)
    @routes.post(f"{_VERSION}/infer", responses=_INFERRED, openapi_extra=_INFER_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        model = _served(inference, name, version)
        inference.check_queue()
        async with intake.body(request) as body:
            scoring = _scored(inference, settings, body, _json_bytes(request), model)
            asked, logits_NK = await unless_gone(request, inference.in_time(scoring))
        return _answer(model, logits_NK, asked)

    return routes


class _Route(APIRoute):
    """Says in the protocol's own form why there is no answer."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_faults(request: Request) -> Response:
            try:
                return await handle(request)
            except ProtocolError as error:
                return _json({"error": str(error)}, error.status)
            except (FetalError, ProblemError) as error:
                problem = problem_of(error)
                where = "" if problem.index is None else f"Element {problem.index}: "
                fault = {"error": f"{where}{problem.detail}"}
                return _json(fault, problem.status, problem.headers)

        return handle_faults


def _json(
    content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    # In ASCII, as a caller's text may hold surrogates, which have no UTF-8.
    body = json.dumps(content).encode("ascii")
    return Response(body, status, headers, media_type="application/json")


def _served(inference: Inference, name: str, version: str | None) -> ServedModel:
    model = inference.model
    if name != model.name:
        raise ProtocolError(f"There is no model of this name; {model.name!r} is served.", 404)
    if version not in (None, model.version):
        raise ProtocolError(
            f"Model {name!r} has no such version here; {model.version!r} is served.", 404
        )
    return model


def _described(model: ServedModel) -> dict[str, Any]:
    size_px, classes = model.info.preprocess.size_px, len(model.info.classes)
    shapes = {"plane": [-1]}
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": model.engine.name,
        "inputs": [
            {"name": IMAGE, "datatype": "UINT8", "shape": [-1, size_px, size_px]},
            {"name": BYTES, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": shapes.get(name, [-1, classes])}
            for name, datatype in OUTPUTS.items()
        ],
    }


def _json_bytes(request: Request) -> int | None:
    value = request.headers.get(HEADER_LENGTH)
    if value is not None and not re.fullmatch("[0-9]{1,18}", value):
        raise ProtocolError(f"{HEADER_LENGTH} must be a number of bytes.")
    return None if value is None else int(value)


async def _scored(
    inference: Inference,
    settings: HttpSettings,
    body: Body,
    json_bytes: int | None,
    model: ServedModel,
) -> tuple[InferRequest, NDArray[np.float32]]:
    config = model.info.preprocess
    # Taken here and kept by nobody: what is read may be a copy of it.
    asked = await inference.read(
        partial(parse_request, body.take(), json_bytes, config.size_px, settings.max_files)
    )
    if asked.images_NHW is not None:
        return asked, await inference.logits(asked.images_NHW, model)
    files = enumerate(asked.files)
    decode = [partial(_decoded, index, data, settings.limits, config) for index, data in files]
    return asked, await inference.file_logits(decode, model)


def _decoded(
    index: int, data: bytes, limits: ImageLimits, config: PreprocessConfig
) -> NDArray[np.uint8]:
    """Preprocessed image of a file with one frame, uint8 (size_px, size_px)."""
    try:
        if (frames := probe(data, limits).frames) > 1:
            raise ProtocolError(
                f"Element {index} has {frames} frames and an answer has a row an element. "
                "Send its frames one by one, or the file to /v1/predict."
            )
        return preprocess(decode(data, limits), config)
    except ImageError as error:
        raise FileError(index, error) from None


def _answer(model: ServedModel, logits_NK: NDArray[np.float32], asked: InferRequest) -> Response:
    rows_NK = apply_temperature(logits_NK, model.info.temperature)
    tensors: dict[str, NDArray[np.float32] | list[str]] = {
        "probabilities": rows_NK.astype(np.float32),
        "logits": logits_NK,
        "plane": [model.info.classes[best] for best in rows_NK.argmax(axis=1).tolist()],
    }
    header = {"model_name": model.name, "model_version": model.version}
    if asked.id is not None:
        header["id"] = asked.id
    body, json_bytes = encode_answer(header, tensors, asked.outputs)
    if json_bytes is None:
        return Response(body, media_type="application/json")
    headers = {HEADER_LENGTH: str(json_bytes)}
    return Response(body, headers=headers, media_type="application/octet-stream")
