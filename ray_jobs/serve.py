"""``fetal serve``: a model as an HTTP endpoint and a web page on this machine."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import tyro
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation

from fetal_core import storage
from fetal_core.api_keys import KeyStore
from fetal_core.bundle import MODEL
from fetal_core.config import parse
from fetal_core.errors import ConfigError
from fetal_core.machine import cores
from ray_jobs.cluster import ResourceError, connected, machines, total
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say
from ray_jobs.following import find_model
from ray_jobs.front import FrontConfig, check, front, haproxy
from ray_jobs.http_settings import HttpSettings
from ray_jobs.serve_app import ServeConfig, build, slots
from ray_jobs.signals import end_within

_APPLICATION = "planes"
_DELETE_S = 5
_END_S = 5
_LOGGING = {"enable_access_log": False, "log_level": "WARNING"}


@contextmanager
def serving(config: ServeConfig, listen: FrontConfig) -> Iterator[str]:
    """The endpoint while the block lasts, with all replicas ready.

    Returns:
        Its address, as the value of the context.

    Raises:
        FetalError: the model cannot be served.
        ResourceError: the port is taken, or no replica became ready.
    """
    # Absolute, since replicas have working directories of their own.
    config = config.model_copy(
        update={
            "model": _absolute(config.model),
            "shadow": _absolute(config.shadow) if config.shadow is not None else None,
            "registry": storage.absolute(config.registry),
        }
    )
    with connected(), tempfile.TemporaryDirectory(prefix="fetal-serve-") as folder:
        if machines() > 1:
            raise ResourceError(
                "`fetal serve` is for one machine, and this cluster has more. Unset RAY_ADDRESS, "
                "or run `serve deploy deploy/serve.yaml`."
            )
        _check_room(config)
        try:
            with _behind(config, listen, Path(folder)):
                yield listen.url
        finally:
            # Other applications may run on the same cluster.
            _delete()


def _check_room(config: ServeConfig) -> None:
    """Refuse replicas that Ray would wait for without a word.

    Raises:
        ResourceError: they need more than this machine has.
    """
    for resource, wanted in (("CPU", config.replicas), ("GPU", config.gpus * config.replicas)):
        if wanted > (there := total(resource)):
            raise ResourceError(
                f"--replicas {config.replicas}{f' --gpus {config.gpus:g}' if config.gpus else ''}: "
                f"needs {resource} {wanted:g}, but Ray has {there:g} here. Lower them."
            )


@contextmanager
def _behind(config: ServeConfig, listen: FrontConfig, folder: Path) -> Iterator[None]:
    """HAProxy, or Ray Serve's own proxy where there is none, and replicas behind it."""
    program, http = haproxy(), config.http
    if program is None:
        if listen.certificate is not None:
            raise ConfigError(
                "TLS needs HAProxy, which is not installed. Install it, or leave --tls."
            )
        _start(config, listen)
        yield
        return
    config = config.model_copy(update={"sockets": str(folder)})
    _start(config, None)
    with front(program, listen, folder, slots(config), http.body_timeout_s, http.timeout_s):
        yield


def _start(config: ServeConfig, listen: FrontConfig | None) -> None:
    """Deploy the replicas, behind Ray Serve's own proxy where it is to listen.

    Raises:
        ResourceError: no replica became ready.
    """
    options = HTTPOptions(host=listen.host, port=listen.port) if listen else None
    where = ProxyLocation.HeadOnly if listen else ProxyLocation.Disabled
    try:
        ray_serve.start(proxy_location=where, http_options=options, logging_config=_LOGGING)
        application = build(config.model_dump(mode="json"))
        ray_serve.run(application, name=_APPLICATION, route_prefix="/" if listen else None)
    except RuntimeError as error:
        raise ResourceError(f"the endpoint did not start: {error}") from error


def _delete() -> None:
    """Take the application off the cluster; a cluster that is gone as well does not answer."""

    def delete() -> None:
        with suppress(RayError, TimeoutError):
            ray_serve.delete(_APPLICATION)

    thread = threading.Thread(target=delete, name="delete", daemon=True)
    thread.start()
    thread.join(_DELETE_S)


def _absolute(model: str) -> str:
    """A bundle's folder from the root; a model's name in the registry stays as it is."""
    is_bundle = storage.is_file(storage.join(model, MODEL))
    return storage.absolute(model) if is_bundle else model


@dataclass
class ServeArgs:
    """Serve a model bundle, or NAME@ALIAS of a registry, over HTTP with a web page."""

    model: tyro.conf.Positional[str]
    """Folder of a model bundle, or NAME@ALIAS of the registry, whose updates are followed."""
    registry: str = "registry"
    """Folder of the registry."""
    host: str = "127.0.0.1"
    """Address to listen on; beyond this machine only with API keys."""
    port: int = 8000
    """Port to listen on."""
    engine: str = "auto"
    """auto takes the fastest engine that the bundle holds; else its name."""
    threads: int = 0
    """Compute threads of a replica; 0 shares out the cores."""
    replicas: int = 1
    """Processes that answer."""
    gpus: float = 0
    """GPUs of each replica, on which torch then runs the model."""
    tls: str | None = None
    """PEM file with certificate, chain and private key: serves HTTPS."""
    connections: int = 1000
    """Open at a time; HAProxy may take 2 MiB for each."""
    shadow: str | None = None
    """A second model, named likewise: it gets a copy of the frames, and /metrics counts where it
    disagrees."""
    keys: str | None = None
    """File of API keys, made by `fetal key create`; requests then need one."""
    http: HttpSettings = field(default_factory=HttpSettings)


def main(argv: Sequence[str]) -> None:
    """The command line of the endpoint."""
    args = parse_args(ServeArgs, argv, "fetal serve")
    http = _with_keys(args.http, args.keys)
    if not http.require_key and not _is_loopback(args.host):
        raise ConfigError(
            f"--host {args.host}: reachable from other machines. Give --keys FILE "
            "(`fetal key create NAME` makes one), or listen on 127.0.0.1."
        )
    if not _is_loopback(args.host) and hasattr(os, "geteuid") and os.geteuid() == 0:
        say("warning: other machines reach a service that runs as root; any user can run it")
    values = {
        "model": args.model,
        "registry": args.registry,
        "engine": args.engine,
        "threads": args.threads or max(1, cores() // max(1, args.replicas)),
        "replicas": args.replicas,
        "gpus": args.gpus,
        "shadow": args.shadow,
        "http": http,
    }
    config = parse(ServeConfig, values, "fetal serve")
    where = {
        "host": args.host,
        "port": args.port,
        "certificate": args.tls,
        "connections": args.connections,
    }
    listen = parse(FrontConfig, where, "fetal serve")
    check(listen)
    for model in (args.model, args.shadow):
        if model is not None:
            find_model(model, args.registry)
    # Ray runs its workers at a low priority otherwise, and answers would wait for anything else.
    os.environ.setdefault("RAY_worker_niceness", "0")
    started_s = time.monotonic()
    with connected():
        _interrupted_once()
        with suppress(KeyboardInterrupt), serving(config, listen) as address:
            say(f"serving {args.model} at {address} after {time.monotonic() - started_s:.0f} s")
            say("try it in a browser, or:")
            words = "--data-binary @IMAGE.png --header 'Content-Type: image/png'"
            say(f"curl {words} {address}/v1/predict")
            signal.pause()
        say("stopped")
        end_within(_END_S, 0)


def _with_keys(http: HttpSettings, keys: str | None) -> HttpSettings:
    """The settings with a file of keys that can be used; as they are where none is named.

    Raises:
        FetalError: there is no such file, or it is damaged or unsafe: nobody would be let in.
    """
    if keys is not None:
        http = http.model_copy(update={"require_key": True, "keys_uri": keys})
    if not http.require_key or http.keys_uri is None:
        return http
    if not storage.is_file(http.keys_uri):
        raise ConfigError(
            f"--keys {http.keys_uri}: no such file. Check the path, or make it with the first key: "
            f"fetal key create NAME --keys {http.keys_uri}"
        )
    store = KeyStore(http.keys_uri)
    if not any(key.is_valid(datetime.now(UTC)) for key in store.list()):
        say(f"warning: no key of {http.keys_uri} is valid; `fetal key create` adds one")
    return http.model_copy(update={"keys_uri": store.uri})


def _interrupted_once() -> None:
    """Let a signal end the command in order; those after it must not disturb the end.

    Ray's own handlers, set when it connects, are replaced.
    """

    def interrupt(number: int, frame: object) -> None:
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(stage("serve"))
