"""The model as a Ray Serve application."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from ray import serve

from fetal_core import storage
from fetal_core.bundle import MODEL
from fetal_core.config import Config, parse
from fetal_core.errors import ConfigError, FetalError
from fetal_core.registry import Registry
from ray_jobs.http_api import create_app
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from ray_jobs.served import ServedModel, load_served

if TYPE_CHECKING:  # needs POSIX
    from ray_jobs.listener import Listener

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_HEALTH_S = 1.0
_TRY_AGAIN_S = 30.0  # a version that was refused may have been mended


class ServeConfig(Config):
    """What a replica serves.

    Attributes:
        model: a bundle's folder, or ``NAME@ALIAS`` of a registry.
        registry: folder of the registry; unused for a bundle.
        engine: as for ``fetal_core.engine.open_engine``.
        threads: of the engine; 0 leaves the choice to it.
        replicas: processes that answer.
        gpus: of each replica, on which torch then runs the model.
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
    http: HttpSettings = HttpSettings()
    sockets: str | None = None


def slots(config: ServeConfig) -> int:
    """Number of sockets: a replica may start before the one that it replaces has ended."""
    return 2 * config.replicas


class Found(NamedTuple):
    """A model that may be served; ``number`` is None for a bundle outside a registry."""

    name: str
    number: int | None
    uri: str

    @property
    def version(self) -> str:
        """As answers show it."""
        return str(self.number or 0)


def find_model(config: ServeConfig) -> Found:
    """What is to be served now.

    Raises:
        FetalError: there is no such model.
    """
    if storage.exists(storage.join(config.model, MODEL)):
        return Found(storage.name(config.model), None, config.model)
    name, at, alias = config.model.partition("@")
    if not storage.exists(config.registry):
        raise ConfigError(
            f"{config.model}: neither a model bundle nor, without a registry at "
            f"{config.registry}, a registered model. Give a bundle's folder, or --registry."
        )
    number, uri = Registry(config.registry).resolve(name, alias if at else "champion")
    return Found(name, number, uri)


def load(config: ServeConfig, found: Found) -> ServedModel:
    """A model, checked against what was registered, loaded and warmed up.

    Raises:
        FetalError: it cannot be used.
    """
    if found.number is not None:
        Registry(config.registry).verify(found.name, found.number)
    device = "cuda" if config.gpus else "cpu"
    return load_served(found.uri, found.name, found.version, config.engine, config.threads, device)


class Planes:
    """A replica: the HTTP application around a model that follows its alias."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Load and warm up the model; the replica is not ready before.

        Args:
            config: fields of ``ServeConfig``.
        """
        self._config = parse(ServeConfig, config, "the deployment's arguments")
        served = load(self._config, find_model(self._config))
        self._inference = Inference(self._config.http, served)
        self._refused: Found | None = None
        self._try_again_s = 0.0
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
        if self._listener is not None and not self._listener.alive:
            raise RuntimeError("the replica no longer listens")

    async def _follow(self) -> None:
        """Exchange the model when its alias has moved; one that cannot be used is passed over."""
        while True:
            await asyncio.sleep(_POLL_S)
            await self._look()

    async def _look(self) -> None:
        now, wanted = self._inference.model, None
        try:
            wanted = await asyncio.to_thread(find_model, self._config)
            refused = wanted == self._refused and time.monotonic() < self._try_again_s
            if refused or (wanted.name, wanted.version) == (now.name, now.version):
                return
            served = await asyncio.to_thread(load, self._config, wanted)
        except FetalError as error:
            # Told once, not at every look.
            if wanted is None or wanted != self._refused:
                logger.warning("version %s keeps serving: %s", now.version, error)
            self._refused, self._try_again_s = wanted, time.monotonic() + _TRY_AGAIN_S
            return
        self._inference.swap(served)
        self._refused = None
        logger.info("version %s of %s serves now", served.version, served.name)


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
