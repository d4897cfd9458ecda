"""The web page's files and the page that describes the interface; nothing is fetched elsewhere."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from ray_jobs.problems import from_status

_FOLDER = Path(__file__).parent / "static"
_CACHE = {"Cache-Control": "no-cache"}


def router() -> APIRouter:
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
        return await static("docs.html")

    return routes
