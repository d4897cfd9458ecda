"""Connection to Ray, and how the machine's processors are shared out."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import ray.data
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ray._private import ray_constants, services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fetal_core import storage
from fetal_core.errors import FetalError
from fetal_core.machine import cores
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.signals import end_on_sigterm

logger = logging.getLogger(__name__)

# Ray counts logical CPUs. A local cluster gets two more than there are cores, so that Ray Data and
# the drivers of trials always find one while a training worker computes.
_SPARE_CPUS = 2
_PROBE_S = 10
_SLOW_START = "timed out during startup"

# What a client of gRPC says first, with an empty frame of settings; servers answer with theirs.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _HTTP2_SETTINGS + bytes(5)


NODE_GROUPS = "FETAL_NODE_GROUPS"


class ResourceError(FetalError):
    """The cluster cannot run what was asked for."""


@contextmanager
def connected() -> Iterator[None]:
    """Ray for the duration of a block.

    Joins the cluster of ``RAY_ADDRESS`` (set by ``ray job submit``), else starts one on this
    machine. Inside another such block it does nothing.

    Raises:
        ResourceError: the cluster does not answer, or this machine cannot start one.
    """
    if ray.is_initialized():
        yield
        return
    _quiet()
    _connect(os.environ.get("RAY_ADDRESS", ""))
    _configure_data()
    try:
        yield
    finally:
        ray.shutdown()


class NodeGroup(BaseModel):
    """Machines that an autoscaler starts when there is work for them.

    Attributes:
        most: how many of them.
        resources: what each has, by Ray's names (``CPU``, ``GPU``).
    """

    model_config = ConfigDict(extra="forbid")

    most: int = Field(ge=0)
    resources: dict[str, float]


_NODE_GROUPS = TypeAdapter(list[NodeGroup])


def node_groups() -> list[NodeGroup]:
    """What the connected cluster can grow by, as ``FETAL_NODE_GROUPS`` tells where a job begins.

    Ray does not tell a job what its autoscaler may start.

    Raises:
        ResourceError: the variable is not a JSON list of such groups.
    """
    try:
        return _NODE_GROUPS.validate_json(os.environ.get(NODE_GROUPS) or "[]")
    except ValidationError as error:
        first = error.errors()[0]
        raise ResourceError(
            f"{NODE_GROUPS}: {'.'.join(map(str, first['loc']))} {first['msg']}. Write it as "
            '[{"most": 4, "resources": {"CPU": 8, "GPU": 1}}] where the head node starts Ray.'
        ) from None


def use_gpu(config: ClusterConfig) -> bool:
    """Whether training workers get a GPU each."""
    enough = total("GPU") >= config.fewest_workers
    if config.gpu == "always" and not enough:
        raise ResourceError(
            f"cluster.gpu = 'always' with {config.fewest_workers} workers, but the cluster has "
            f"{total('GPU'):g} GPUs. Use fewer workers or gpu = 'auto'."
        )
    return config.gpu != "never" and enough


def total(resource: str) -> float:
    """How much of a resource the connected cluster has, or can have once it has grown."""
    grown = sum(group.most * group.resources.get(resource, 0.0) for group in node_groups())
    return max(_present(resource), grown)


def _present(resource: str) -> float:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get(resource, 0.0)


def check_capacity(config: ClusterConfig) -> None:
    """Refuse a job that would wait for ever for its workers.

    Raises:
        ResourceError: the workers do not fit the cluster, or one worker fits no machine.
    """
    workers, available = config.fewest_workers, total("CPU")
    wanted = workers * config.cpus_per_worker
    if wanted > available:
        raise ResourceError(
            f"{workers} workers with {config.cpus_per_worker} CPUs each need {wanted} "
            f"logical CPUs, but the cluster has {available:g}. Use fewer workers or a larger "
            "cluster."
        )
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    machines += [group.resources for group in node_groups() if group.most]
    largest = max(machine.get("CPU", 0) for machine in machines)
    if config.cpus_per_worker > largest:
        raise ResourceError(
            f"cluster.cpus_per_worker = {config.cpus_per_worker}, but the largest machine of the "
            f"cluster has {largest:g} logical CPUs. Lower it."
        )
    if wanted > (now := _present("CPU")):
        logger.warning("%d logical CPUs are needed, %g are here: waiting for machines", wanted, now)


def has_spare_cpus(config: ClusterConfig) -> bool:
    """Whether logical CPUs are free besides those of all training workers."""
    available: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return available.get("CPU", 0.0) > config.workers * config.cpus_per_worker


def jobs_at_once(cpus: float, gpus: float = 0) -> int:
    """How many independent jobs, each of so many logical CPUs and GPUs, run at a time.

    As many as fit the cluster without the two logical CPUs that Ray Data needs; at least one.
    """
    fitting = int((total("CPU") - _SPARE_CPUS) // cpus)
    if gpus:
        fitting = min(fitting, int(total("GPU") // gpus))
    return max(1, fitting)


def machines() -> int:
    """Number of machines that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(node["Alive"] for node in nodes)


def check_reachable(uri: str) -> None:
    """Refuse a file of this machine where work on other machines needs it.

    Raises:
        ResourceError: machines that do not see it.
    """
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in nodes if node["Alive"]]
    if storage.is_remote(uri) or len(alive) == 1:
        return
    look = ray.remote(num_cpus=0)(storage.exists)
    answers = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        for node in alive
    ]
    seen = ray.get([answer.remote(uri) for answer in answers])
    blind = [
        node["NodeManagerAddress"] for node, there in zip(alive, seen, strict=True) if not there
    ]
    if blind:
        raise ResourceError(
            f"{uri}: not to be seen from {', '.join(blind)}. Put the runs where all machines of "
            "the cluster reach them: a shared folder or s3://."
        )


def _connect(address: str) -> None:
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address in ("", "local"):
        _stay_on_loopback()
        cpus = cores() + _SPARE_CPUS
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        _probe(address)
        with _spared_by_the_terminal():
            _init(options)
        end_on_sigterm()
    except Exception as error:  # Ray has no class for what may go wrong here
        ray.shutdown()
        raise ResourceError(_not_connected(address, error)) from error


def _init(options: dict[str, Any]) -> None:
    """Start or join Ray; a start that a busy machine was too slow for is tried once more."""
    try:
        ray.init(**options)
    except Exception as error:
        if options.get("address") != "local" or _SLOW_START not in str(error):
            raise
        ray.shutdown()
        logger.warning("Ray did not start within half a minute: trying once more")
        ray.init(**options)


def _stay_on_loopback() -> None:
    """Let a cluster of this machine alone listen on the loopback interface, as Ray does on macOS.

    Ray reads the variable when it is imported; its processes inherit it.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


@contextmanager
def _spared_by_the_terminal() -> Iterator[None]:
    """Let Ray start its processes in process groups of their own.

    A terminal and `timeout` signal a whole group: without its own store and scheduler, Ray could
    not end in order when the command is asked to.
    """
    start = services.ConsolePopen
    services.ConsolePopen = partial(start, process_group=0)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        services.ConsolePopen = start  # type: ignore[misc]


def _probe(address: str) -> None:
    """Fail at once where nothing listens, or what is not Ray; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    host = host.strip("[]")
    _greet(host, int(port))
    # Ray takes the loopback interface for the network card's.
    meant = services.resolve_ip_for_localhost(host)
    if meant != host:
        try:
            _greet(meant, int(port))
        except OSError as error:
            raise ConnectionError(f"Ray looks for it at {meant}, and there: {error}.") from error


def _greet(host: str, port: int) -> None:
    with socket.create_connection((host, port), _PROBE_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        connection.sendall(_HTTP2_GREETING)
        answer = connection.recv(9)
        if answer[3:4] != _HTTP2_SETTINGS:
            raise ConnectionError("what listens there does not speak gRPC")


def _not_connected(address: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if address in ("", "local"):
        return (
            f"Ray did not start on this machine: {reason} "
            "If the machine is busy or short of memory, run the same command again later."
        )
    return (
        f"RAY_ADDRESS={address}: no Ray cluster answers there: {reason} Unset RAY_ADDRESS to work "
        "on this machine alone, or give host:port of the cluster's head node (6379 by default)."
    )


def _quiet() -> None:
    """Keep Ray's notes about its plans and tokens off the terminal; its errors still show."""
    for name in ("data", "tune", "serve", "_private.authentication.authentication_token_setup"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)


def _configure_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    # Its reader of Parquet footers starts four processes for a dataset, for a few files of ours.
    context.use_datasource_v2 = False
