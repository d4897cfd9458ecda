"""The HTTP interface, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from fetal_core import storage
from fetal_core.api_keys import KeyStore
from ray_jobs import http_pages, open_inference, stream
from ray_jobs.gone import unless_gone
from ray_jobs.http_body import Intake, Upload
from ray_jobs.http_gateway import Check, Gateway
from ray_jobs.http_models import (
    Health,
    ModelCard,
    ModelList,
    PredictAnswer,
    ProblemDocument,
    model_card,
)
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import FileAnswer, Inference
from ray_jobs.problems import MEDIA_TYPE, ProblemError, from_status

_QUOTE_INPUT = ("PIL", "openjpeg", "pydicom", "pylibjpeg", "python_multipart")
"""Libraries whose warnings quote what they read, such as a patient's name."""

_DESCRIPTION = "Names the plane of fetal ultrasound images. Research use only."
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "properties": {"file": _FILES}, "required": ["file"]}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": _BINARY,
            "application/dicom": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {"schema": _FORM},
        },
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema()}},
    }
    for status, text in {
        400: "Not an image, or one that cannot be decoded",
        401: "No valid API key",
        408: "The body did not arrive in time",
        413: "Body, pixels, frames or number of files over the limits",
        415: "Unsupported media type",
        422: "Malformed request",
        429: "The queue is full; see Retry-After",
        503: "No model is loaded",
        504: "No answer in time",
    }.items()
}
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"description": "The heat map over the image", "content": {"image/png": _BINARY}}
}


def _answers(model: type[BaseModel], *problems: int) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, **{status: _PROBLEMS[status] for status in problems}}


def create_app(inference: Inference, settings: HttpSettings) -> FastAPI:
    """The application around an inference; whoever made the inference closes it.

    Silences the loggers of the libraries that read input: they quote it.

    Raises:
        StorageError: the store of API keys is needed and its address is not valid.
    """
    for name in _QUOTE_INPUT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    app = FastAPI(
        title="Fetal planes",
        version=version("fetal-planes"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    intake = Intake(settings)
    app.include_router(_images(inference, intake))
    app.include_router(_state(inference))
    app.include_router(open_inference.router(inference, settings, intake))
    app.include_router(stream.router(inference, settings))
    app.include_router(http_pages.router())
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_middleware(Gateway, metrics=inference.metrics, check_key=_key_check(settings))
    return app


def _images(inference: Inference, intake: Intake) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["images"], responses=_PROBLEMS)

    @routes.post("/predict", responses={200: {"model": PredictAnswer}}, openapi_extra=_BODY)
    async def predict(request: Request) -> Response:
        """Planes, calibrated probabilities and decisions of one image or several."""
        started_s = time.perf_counter()
        _ = inference.model
        inference.check_queue()
        async with intake.upload(request) as upload:
            answers = await unless_gone(request, _predict(inference, upload))
        return _json(_answer(answers, time.perf_counter() - started_s))

    @routes.post("/explain", responses=_PNG, response_class=Response, openapi_extra=_BODY)
    async def explain(
        request: Request,
        plane: Annotated[
            str | None, Query(alias="class", description="the most probable one if left out")
        ] = None,
        frame: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """Heat map (Grad-CAM) of a class over one frame of one image."""
        inference.check_queue()
        async with intake.upload(request) as upload:
            if len(upload.files) > 1:
                raise ProblemError(422, "malformed-request", "Send one file to be explained.")
            work = inference.explain(upload.files[0], plane, frame)
            png = await unless_gone(request, work)
        return Response(png, media_type="image/png")

    return routes


def _state(inference: Inference) -> APIRouter:
    routes = APIRouter(tags=["state"])

    @routes.get("/v1/model", responses=_answers(ModelCard, 401, 503))
    async def model() -> Response:
        """The card of the model that answers now."""
        return _json(model_card(inference.model))

    @routes.get("/v1/models", responses=_answers(ModelList, 401))
    async def models() -> Response:
        """All models that answer now."""
        served = [inference.model] if inference.ready else []
        return _json({"models": [{"name": one.name, "version": one.version} for one in served]})

    @routes.get("/healthz", responses={200: {"model": Health}})
    async def healthz() -> Response:
        """Whether the process lives."""
        return _json({"status": "alive"})

    @routes.get("/readyz", responses=_answers(Health, 503))
    async def readyz() -> Response:
        """Whether a model is loaded and warmed up."""
        _ = inference.model
        return _json({"status": "ready"})

    @routes.get("/metrics", response_class=PlainTextResponse, responses={401: _PROBLEMS[401]})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(inference.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes


async def _predict(inference: Inference, upload: Upload) -> list[FileAnswer]:
    if upload.multipart:
        return await inference.predict_files(upload.files)
    return [await inference.predict(upload.files[0])]


def _answer(answers: list[FileAnswer], total_s: float) -> dict[str, Any]:
    model = answers[0].model
    return {
        "model": {"name": model.name, "version": model.version},
        "results": [
            {"index": index, "frames": [vars(frame) for frame in answer.frames]}
            for index, answer in enumerate(answers)
        ],
        "timings_ms": {
            "decode": _ms(sum(answer.decode_s for answer in answers)),
            "queue": _ms(sum(answer.queue_s for answer in answers)),
            "engine": _ms(sum(answer.engine_s for answer in answers)),
            "total": _ms(total_s),
        },
    }


def _json(content: object) -> Response:
    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")


def _ms(duration_s: float) -> float:
    return round(duration_s * 1000, 2)


def _key_check(settings: HttpSettings) -> Check | None:
    if not settings.require_key or settings.keys_uri is None:
        return None
    store = KeyStore(settings.keys_uri)
    if storage.is_remote(settings.keys_uri):
        return lambda presented: asyncio.to_thread(store.check, presented)

    async def check(presented: str) -> bool:
        return store.check(presented)

    return check


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown addresses and methods."""
    assert isinstance(error, HTTPException)
    details = {
        404: "There is nothing at this address. See /docs for those there are.",
        405: "This address does not take this method. See /docs.",
    }
    problem = from_status(error.status_code, details.get(error.status_code), error.headers)
    return problem.response(request.state.request_id)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    problem = ProblemError(422, "malformed-request", "; ".join(faults))
    return problem.response(request.state.request_id)
