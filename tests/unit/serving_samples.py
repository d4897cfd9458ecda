"""Models, engines and files for the tests of the service."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from starlette.types import ASGIApp, Message, Receive

from builders import CLASSES, SIZE_PX, toy_bundle
from data_samples import texture
from fetal_core.bundle import Bundle
from fetal_core.engine import TorchEngine
from ray_jobs.http_api import create_app
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference, ServedModel


class ConstantEngine:
    """Gives every image the same scores; may be held, and can tell what it was asked."""

    name = "constant"
    size_px = SIZE_PX

    def __init__(self, best: int = 0, held: bool = False) -> None:
        self.batches: list[int] = []
        self.threads: list[str] = []
        self.started = threading.Event()
        self.go = threading.Event()
        self._best = best
        if not held:
            self.go.set()

    def logits(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.started.set()
        if not self.go.wait(30):
            raise RuntimeError("held for too long")
        self.batches.append(len(images_NHW))
        self.threads.append(threading.current_thread().name.partition("_")[0])
        logits_NK = np.zeros((len(images_NHW), len(CLASSES)), np.float32)
        logits_NK[:, self._best] = 8
        return logits_NK


class BrokenEngine(ConstantEngine):
    """Fails at every call, with words that must not leave the process."""

    def logits(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise RuntimeError("secret.png of Jane Doe")


def torch_model(folder: Path, version: str = "1", **changes: object) -> ServedModel:
    """A toy bundle under ``folder``, served in float32 as `fetal predict` runs it."""
    toy_bundle(**changes).save(str(folder))
    bundle = Bundle.load(str(folder))
    return ServedModel(TorchEngine(bundle, "fp32"), bundle.info, "toy", version, str(folder))


def constant_model(engine: ConstantEngine, version: str = "1", **changes: object) -> ServedModel:
    """A model that needs no files."""
    return ServedModel(engine, toy_bundle(**changes).info, "toy", version, "nowhere")


def tiff(frames: int) -> bytes:
    """Textures as pages."""
    pages = [Image.fromarray(texture(seed)) for seed in range(frames)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def cine(frames: int) -> bytes:
    """An uncompressed multi-frame DICOM file of textures."""
    pixels_NHW = np.stack([texture(seed) for seed in range(frames)])
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels_NHW.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels_NHW.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def asked(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """The answer to one request, in an event loop of its own."""

    async def ask() -> httpx.Response:
        async with client(app) as session:
            return await session.request(method, path, **options)

    return asyncio.run(ask())


def client(app: ASGIApp) -> httpx.AsyncClient:
    """A client without a network; what escapes the application is raised here."""
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


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


def leaving(body: bytes, gone: asyncio.Event) -> Receive:
    """What ASGI receives of a client that sends ``body`` and is gone from an event on."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


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
