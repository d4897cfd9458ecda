"""The page's files and an interface whose answers follow from the brightness of quadrants."""

from __future__ import annotations

import json
import mimetypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fetal_core.errors import ImageError
from fetal_core.explain import overlay_png
from fetal_core.images import decode_frames

STATIC = Path(__file__).resolve().parents[2] / "ray_jobs" / "static"
CLASSES = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Maternal cervix")
THRESHOLD = 0.7
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CARD = {
    "name": "planes",
    "version": "7",
    "engine": "openvino-int8",
    "architecture": "resnet50",
    "classes": list(CLASSES),
    "size_px": 224,
    "calibrated": True,
    "threshold": THRESHOLD,
    "metrics": {
        "test": {
            "accuracy": 0.938,
            "macro_f1": 0.929,
            "images": 226,
            "intervals": {"accuracy": [0.905, 0.967]},
        }
    },
}
OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "Fetal planes", "version": "0.1.0"},
    "paths": {
        "/v1/model": {"get": {"summary": "The card", "responses": {"200": {"description": "It"}}}},
        "/v1/explain": {
            "post": {
                "description": "Heat map of a class.\n\nOne image only.",
                "parameters": [
                    {
                        "name": "class",
                        "in": "query",
                        "required": False,
                        "schema": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                        "description": "the most probable one if left out",
                    }
                ],
                "requestBody": {"content": {"image/*": {"schema": {"type": "string"}}}},
                "responses": {
                    "200": {"description": "The picture", "content": {"image/png": {}}},
                    "400": {
                        "description": "Not an image",
                        "content": {
                            "application/problem+json": {
                                "schema": {"$ref": "#/components/schemas/Problem"}
                            }
                        },
                    },
                },
            }
        },
    },
    "components": {"schemas": {"Problem": {"type": "object"}}},
}


class FakeServer(ThreadingHTTPServer):
    """Listens on loopback.

    Attributes:
        key: that requests must carry; None asks for none.
        busy: number of coming predictions to refuse.
        explained: query of each heat map asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key: str | None = None
        self.busy = 0
        self.explained: list[dict[str, list[str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def answer(image_HW: NDArray[np.uint8], frame: int) -> dict[str, Any]:
    """One class a quadrant; the brighter it is, the more probable."""
    means_K = np.array([part.mean() for part in quadrants(image_HW)])
    shares_K = softmax(means_K / 20)
    confidence = float(shares_K.max())
    if image_HW.min() == image_HW.max():
        decision, reason = "reject", "all pixels have the same grey value"
    elif confidence >= THRESHOLD:
        decision, reason = "accept", f"the confidence of {confidence:.3f} reaches the threshold"
    else:
        decision, reason = "review", f"the confidence of {confidence:.3f} is below the threshold"
    return {
        "frame": frame,
        "plane": CLASSES[int(shares_K.argmax())],
        "confidence": confidence,
        "probabilities": dict(zip(CLASSES, shares_K.tolist(), strict=True)),
        "decision": decision,
        "reason": reason,
    }


def quadrants(image_HW: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [part for half in np.array_split(image_HW, 2) for part in np.array_split(half, 2, 1)]


def heat(image_HW: NDArray[np.uint8], plane: str) -> NDArray[np.float32]:
    """A bump over the quadrant of a class."""
    height, width = image_HW.shape
    row, column = divmod(CLASSES.index(plane), 2)
    rows_H1, columns_1W = np.ogrid[:height, :width]
    distance_HW = np.hypot(
        rows_H1 / height - 0.3 - 0.4 * row, columns_1W / width - 0.3 - 0.4 * column
    )
    return np.exp(-((distance_HW / 0.16) ** 2)).astype(np.float32)


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        pages = {"/": "index.html", "/docs": "docs.html"}
        name = pages.get(path, path.removeprefix("/static/"))
        if path == "/openapi.json":
            self._json(200, OPENAPI)
        elif path == "/v1/model":
            if self._allowed():
                self._json(200, CARD)
        elif (STATIC / name).is_file():
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            self._send(200, (STATIC / name).read_bytes(), kind)
        else:
            self._problem(404, "Not found", "There is nothing at this address.")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = urlsplit(self.path)
        if not self._allowed():
            return
        try:
            images = list(decode_frames(body))
        except ImageError as error:
            self._problem(400, "The image cannot be read", str(error))
            return
        if address.path == "/v1/explain":
            query = parse_qs(address.query)
            self.server.explained.append(query)
            image_HW = images[int(query["frame"][0])]
            self._send(200, overlay_png(image_HW, heat(image_HW, query["class"][0])), "image/png")
        elif self.server.busy:
            self.server.busy -= 1
            self._problem(429, "Too many requests", "The queue is full.", {"Retry-After": "7"})
        else:
            self._predict(images)

    def _predict(self, images: list[NDArray[np.uint8]]) -> None:
        frames = [answer(image_HW, frame) for frame, image_HW in enumerate(images)]
        self._json(
            200,
            {
                "model": {"name": CARD["name"], "version": CARD["version"]},
                "results": [{"index": 0, "frames": frames}],
                "timings_ms": {"decode": 3.1, "queue": 0.4, "engine": 18.9, "total": 22.8},
            },
        )

    def _allowed(self) -> bool:
        if self.server.key in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            return True
        self._problem(401, "Not authorised", "The API key is missing or wrong.")
        return False

    def _problem(self, status: int, title: str, detail: str, headers: Any = None) -> None:
        content = {
            "type": "urn:fetal:problem:x",
            "title": title,
            "status": status,
            "detail": detail,
        }
        self._json(status, content, "application/problem+json", headers)

    def _json(
        self, status: int, content: Any, kind: str = "application/json", headers: Any = None
    ) -> None:
        self._send(status, json.dumps(content).encode(), kind, headers)

    def _send(self, status: int, content: bytes, kind: str, headers: Any = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass
