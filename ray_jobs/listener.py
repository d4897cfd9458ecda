"""A replica's own HTTP server, on one of a fixed number of sockets."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.types import ASGIApp

from ray_jobs.front import socket_path
from ray_jobs.http_settings import HttpSettings
from ray_jobs.whole_responses import WholeResponses

_START_S = 20.0
_KEEP_ALIVE_S = 300  # longer than HAProxy keeps idle connections to replicas
# Of a stream, before the client has to wait: each may be as large as a frame, and the newest wins.
_WAITING_MESSAGES = 2


class NoSlotError(RuntimeError):
    """All sockets are taken by replicas that live."""


class Listener:
    """An application on the first free socket of a folder, in a thread with an event loop.

    A socket belongs to who holds the lock beside it, which the system releases with the process
    however that ends.

    Args:
        app: to be served.
        folder: of the sockets.
        slots: number of sockets.
        beside: started in the same event loop, and cancelled in the end.
        settings: of the service.

    Raises:
        NoSlotError: all sockets are taken.
        RuntimeError: the server did not start.
    """

    def __init__(
        self,
        app: ASGIApp,
        folder: Path,
        slots: int,
        beside: Callable[[], Coroutine[Any, Any, None]],
        settings: HttpSettings,
    ) -> None:
        self._lock, path = _claim(folder, slots)
        self._socket = _bind(path)
        self._beside = beside
        config = uvicorn.Config(
            app,
            http=WholeResponses,
            ws="websockets",
            ws_max_size=settings.stream.max_frame_bytes + 1,
            ws_max_queue=_WAITING_MESSAGES,
            # Images are compressed already; a frame could inflate to a thousand times its size.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.timeout_s),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        deadline_s = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline_s:
                raise RuntimeError(f"the HTTP server did not start at {path}")
            time.sleep(0.005)

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Take no more connections, answer what is under way, and end."""
        self._server.should_exit = True
        self._thread.join()
        os.close(self._lock)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        beside = asyncio.create_task(self._beside())
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await asyncio.wait({beside, serving}, return_when=asyncio.FIRST_COMPLETED)
        self._server.should_exit = True
        await serving
        beside.cancel()


def _claim(folder: Path, slots: int) -> tuple[int, Path]:
    for slot in range(slots):
        path = socket_path(folder, slot)
        lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return lock, path
    raise NoSlotError(f"all {slots} sockets in {folder} are taken")


def _bind(path: Path) -> socket.socket:
    """Listen, in the place of a replica that has ended."""
    path.unlink(missing_ok=True)
    found = socket.socket(socket.AF_UNIX)
    found.bind(str(path))
    path.chmod(0o600)
    return found
