"""Applications on a loopback port, for clients that need a real server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from builders import toy_bundle
from fetal_core.bundle import Bundle
from fetal_core.engine import Engine, TorchEngine
from ray_jobs.served import ServedModel


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serve ``app`` in a thread; yields ``127.0.0.1:PORT``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def toy_model(
    bundle: Bundle | None = None, engine: Engine | None = None, version: str = "1"
) -> ServedModel:
    """A toy bundle in service, in float32."""
    bundle = bundle or toy_bundle()
    engine = engine or TorchEngine(bundle, precision="fp32")
    return ServedModel(engine, bundle.info, "planes", version, "memory")
