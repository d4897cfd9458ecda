"""A replica's own socket."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import httpx
import pytest

from ray_jobs.front import socket_path
from ray_jobs.http_settings import HttpSettings
from ray_jobs.listener import Listener, NoSlotError
from serving_samples import serving


async def nothing() -> None:
    await asyncio.Event().wait()


def test_a_replica_answers_on_a_socket_for_this_user_alone(tmp_path: Path) -> None:
    with serving() as (app, _):
        listener = Listener(app, tmp_path, 1, nothing, HttpSettings())
        path = socket_path(tmp_path, 0)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://service") as client:
            assert client.get("/readyz").status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(NoSlotError):
            Listener(app, tmp_path, 1, nothing, HttpSettings())
        listener.close()
        Listener(app, tmp_path, 1, nothing, HttpSettings()).close()
