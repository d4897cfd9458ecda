"""``fetal serve``: a model as an HTTP endpoint and a web page on this machine."""

from __future__ import annotations

import ipaddress
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import tyro
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions

from fetal_core import storage
from fetal_core.errors import ConfigError
from fetal_core.machine import cores
from ray_jobs.cluster import ResourceError, connected
from ray_jobs.command import parse_args, stage
from ray_jobs.console import say
from ray_jobs.http_settings import HttpSettings
from ray_jobs.serve_app import ServeConfig, build, find_model

_APPLICATION = "planes"


@contextmanager
def serving(config: ServeConfig, host: str, port: int) -> Iterator[str]:
    """The endpoint while the block lasts, with its first replica ready.

    Returns:
        Its address, as the value of the context.

    Raises:
        FetalError: the model cannot be served.
        ResourceError: the port is taken, or no replica became ready.
    """
    # Absolute, since replicas have working directories of their own.
    config = config.model_copy(
        update={"model": _absolute(config.model), "registry": storage.absolute(config.registry)}
    )
    find_model(config)
    with connected():
        try:
            ray_serve.start(
                http_options=HTTPOptions(host=host, port=port),
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
            application = build(config.model_dump(mode="json"))
            ray_serve.run(application, name=_APPLICATION, route_prefix="/")
            yield f"http://{host}:{port}"
        except RuntimeError as error:
            raise ResourceError(f"the endpoint did not start: {error}") from error
        finally:
            ray_serve.shutdown()  # type: ignore[no-untyped-call]


def _absolute(model: str) -> str:
    return model if "@" in model else storage.absolute(model)


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
    keys: str | None = None
    """File of API keys (`fetal key create`); requests then need one."""
    http: HttpSettings = field(default_factory=HttpSettings)


def main(argv: Sequence[str]) -> None:
    """The command line of the endpoint."""
    args = parse_args(ServeArgs, argv, "fetal serve")
    http = args.http
    if args.keys is not None:
        http = http.model_copy(
            update={"require_key": True, "keys_uri": storage.absolute(args.keys)}
        )
    if not http.require_key and not _is_loopback(args.host):
        raise ConfigError(
            f"--host {args.host}: reachable from other machines. Give --keys FILE "
            "(`fetal key create NAME` makes one), or listen on 127.0.0.1."
        )
    threads = args.threads or max(1, cores() // args.replicas)
    config = ServeConfig(
        model=args.model,
        registry=args.registry,
        engine=args.engine,
        threads=threads,
        replicas=args.replicas,
        http=http,
    )
    started = time.monotonic()
    stop = threading.Event()
    with serving(config, args.host, args.port) as address:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        say(f"serving {args.model} at {address} after {time.monotonic() - started:.0f} s")
        say(f"try it in a browser, or: curl --data-binary @IMAGE.png {address}/v1/predict")
        stop.wait()
    say("stopped")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(stage("serve"))
