"""The model as a Ray Serve application."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from ray import serve

from fetal_core.config import Config, parse
from fetal_core.registry import Registry
from ray_jobs.following import Follower, Found
from ray_jobs.http_api import create_app
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from ray_jobs.served import ServedModel, load_served

if TYPE_CHECKING:  # needs POSIX
    from ray_jobs.listener import Listener

_POLL_S = 1.0
_HEALTH_S = 1.0


class ServeConfig(Config):
    """What a replica serves.

    Attributes:
        model: a bundle's folder, or ``NAME@ALIAS`` of a registry.
        registry: folder of the registry; unused for a bundle.
        engine: as for ``fetal_core.engine.open_engine``.
        threads: of the engine; 0 leaves the choice to it.
        replicas: processes that answer.
        gpus: of each replica, on which torch then runs the model.
        shadow: another model, named likewise, that gets a copy of the frames and answers nobody.
        http: limits, queue and batches.
        sockets: folder in which each replica listens on a socket of its own, for a front on the
            same machine; None where Ray Serve's proxies bring the requests.
    """

    model: str
    registry: str = "registry"
    engine: str = "auto"
    threads: NonNegativeInt = 0
    replicas: PositiveInt = 1
    gpus: NonNegativeFloat = 0
    shadow: str | None = None
    http: HttpSettings = HttpSettings()
    sockets: str | None = None


def slots(config: ServeConfig) -> int:
    """Number of sockets: a replica may start before the one that it replaces has ended."""
    return 2 * config.replicas


class Planes:
    """A replica: the HTTP application around a model that follows its alias."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Load and warm up the model; the replica is not ready before.

        Args:
            config: fields of ``ServeConfig``.
        """
        self._config = parse(ServeConfig, config, "the deployment's arguments")
        self._inference = Inference(self._config.http)
        self._inference.metrics.replica = f"{socket.gethostname()}:{os.getpid()}"
        self._followers = [self._follower_of(self._config.model, self._inference.swap)]
        self._inference.swap(self._followers[0].first())
        if self._config.shadow is not None:
            shadow = self._follower_of(self._config.shadow, self._inference.set_shadow)
            self._followers.append(shadow)
            # A shadow that cannot be used is told, looked at again, and keeps nobody waiting.
            with suppress(Exception):
                self._inference.set_shadow(shadow.first())
        self._follower: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        if self._config.sockets is not None:
            from ray_jobs.listener import Listener

            self._listener = Listener(
                create_app(self._inference, self._config.http),
                Path(self._config.sockets),
                slots(self._config),
                self._follow,
                self._config.http,
            )

    def __serve_build_asgi_app__(self) -> Any:
        self._follower = asyncio.get_running_loop().create_task(self._follow())
        return create_app(self._inference, self._config.http)

    def __del__(self) -> None:
        """Ray Serve calls it when the replica is to end."""
        if (listener := getattr(self, "_listener", None)) is not None:
            listener.close()

    def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        if self._follower is not None and self._follower.done():
            raise RuntimeError("the replica no longer follows its alias")
        if not self._inference.alive:
            raise RuntimeError("a thread of the engine has ended")
        if self._listener is not None and not self._listener.alive:
            raise RuntimeError("the replica no longer listens")

    def _follower_of(self, model: str, use: Callable[[ServedModel], None]) -> Follower:
        return Follower(model, self._config.registry, self._load, use)

    def _load(self, found: Found) -> ServedModel:
        """A model, checked against what was registered, loaded and warmed up."""
        config = self._config
        if found.number is not None:
            Registry(config.registry).verify(found.name, found.number)
        device = "cuda" if config.gpus else "cpu"
        settings = config.engine, config.threads, device
        return load_served(found.uri, found.name, found.version, *settings)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            for follower in self._followers:
                await follower.look()


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application of ``serve deploy``: the fields of ``ServeConfig`` are its arguments."""
    config = parse(ServeConfig, arguments, "the application's arguments")
    queue = config.http.queue_size
    replica = Planes if config.sockets is not None else serve.ingress()(Planes)
    deployment: Any = serve.deployment(
        replica,
        name="planes",
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": config.gpus},
        # The replica answers 429 itself when its queue is full: Ray Serve must not hold back.
        max_ongoing_requests=2 * queue,
        max_queued_requests=queue,
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=config.http.timeout_s,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    application: serve.Application = deployment.bind(arguments)
    return application
