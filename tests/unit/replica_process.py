"""A replica for the tests of the front: `python replica_process.py FOLDER SLOTS`.

Answers after the body has arrived and a moment has passed, by its process id.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from ray_jobs.http_settings import HttpSettings
from ray_jobs.listener import Listener

WORK_S = 0.1


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    if scope["path"] != "/readyz":
        await asyncio.sleep(WORK_S)
    body = f"{os.getpid()} {size}".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def beside() -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    listener = Listener(app, Path(sys.argv[1]), int(sys.argv[2]), beside, HttpSettings())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the test closes it
    listener.close()
