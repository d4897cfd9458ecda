"""The web page's files and the page that describes the interface; nothing is fetched elsewhere."""

from __future__ import annotations

import html
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from ray_jobs.problems import from_status

_FOLDER = Path(__file__).parent / "static"
_CACHE = {"Cache-Control": "no-cache"}


def router(openapi: Callable[[], dict[str, Any]]) -> APIRouter:
    """``/``, ``/static/...`` and ``/docs``; the files are read here, once."""
    files = {
        path.name: (path.read_bytes(), mimetypes.guess_type(path.name)[0])
        for path in _FOLDER.iterdir()
        if path.is_file()
    }
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def index() -> Response:
        return await static("index.html")

    @routes.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in files:
            raise from_status(404)
        content, media_type = files[name]
        return Response(content, headers=_CACHE, media_type=media_type)

    @routes.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(_described(openapi()), headers=_CACHE)

    return routes


def _described(document: dict[str, Any]) -> str:
    """The operations of an OpenAPI document as a table."""
    rows = [
        f"<tr><th scope='row'><code>{method.upper()} {html.escape(path)}</code></th>"
        f"<td>{html.escape(operation.get('description') or operation.get('summary', ''))}</td>"
        f"<td>{html.escape(', '.join(operation['responses']))}</td></tr>"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    title = html.escape(document["info"]["title"])
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><link rel='stylesheet' href='/static/style.css'></head>"
        f"<body><main><h1>{title}</h1>"
        f"<p>{html.escape(document['info']['description'])} "
        "The full description is <a href='/openapi.json'>openapi.json</a>.</p>"
        "<table><thead><tr><th scope='col'>Operation</th><th scope='col'>What it does</th>"
        f"<th scope='col'>Status</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "</main></body></html>"
    )
