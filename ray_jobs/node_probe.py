"""What ``fetal doctor`` asks of each machine, and how it is brought there."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray._common.utils import get_default_ray_temp_dir as default_folder
from ray._private import worker
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fetal_core.errors import FetalError
from ray_jobs.machine_checks import Share
from ray_jobs.machine_facts import Facts, own_ports, read_facts
from ray_jobs.storage_probe import StorageFacts, try_storage

_CONNECT_S = 3.0


class NodeError(FetalError):
    """A machine did not answer a question."""


class Probe(Protocol):
    """Answers for one machine.

    All may raise NodeError.
    """

    def facts(self, folders: Sequence[str]) -> Facts:
        """What the machine is and has; ``folders`` beside Ray's own for temporary files."""

    def clock_s(self) -> float:
        """Seconds since 1970, by the machine's clock."""

    def storage(self, folder: str, machine: str, size_bytes: int, marked: bool) -> StorageFacts:
        """As ``storage_probe.try_storage``."""

    def listen(self) -> list[int]:
        """Ports on which others must reach this process; one is opened that the system chose."""

    def reach(self, targets: Sequence[tuple[str, int]]) -> list[str]:
        """For each address and port why no connection was made; empty where one was."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or this one.

    Attributes:
        name: as findings call it.
        probe: answers for it.
        address: of its network interface; empty outside a cluster.
        ports: on which Ray listens there for other machines, by what listens.
        share: what Ray counts as its own there; None outside a cluster.
    """

    name: str
    probe: Probe
    address: str = ""
    ports: tuple[tuple[str, int], ...] = ()
    share: Share | None = None


@dataclass(frozen=True)
class Cluster:
    """A cluster as its head node tells of it.

    Attributes:
        nodes: the machines that are alive.
        dead: what is told of those that are not.
        dashboard_port: 0 where there is none.
    """

    nodes: list[Node]
    dead: list[str]
    dashboard_port: int


class LocalProbe:
    """Answers for the machine that it runs on."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def facts(self, folders: Sequence[str]) -> Facts:
        """See Probe."""
        return read_facts([_temporary_folder(), *folders])

    def clock_s(self) -> float:
        """See Probe."""
        return time.time()

    def storage(self, folder: str, machine: str, size_bytes: int, marked: bool) -> StorageFacts:
        """See Probe."""
        return try_storage(folder, machine, size_bytes, marked)

    def listen(self) -> list[int]:
        """See Probe."""
        if self._listener is None:
            self._listener = socket.create_server(("", 0))
        return own_ports()

    def reach(self, targets: Sequence[tuple[str, int]]) -> list[str]:
        """See Probe."""
        return [_refusal(address, port) for address, port in targets]


class SkewedProbe(LocalProbe):
    """A fake: this machine as if its clock were wrong, or versions of packages were others."""

    def __init__(self, ahead_s: float = 0.0, versions: dict[str, str] | None = None) -> None:
        super().__init__()
        self._ahead_s, self._versions = ahead_s, versions or {}

    def facts(self, folders: Sequence[str]) -> Facts:
        """See Probe."""
        found = super().facts(folders)
        return replace(found, versions=found.versions | self._versions)

    def clock_s(self) -> float:
        """See Probe."""
        return super().clock_s() + self._ahead_s


class SilentProbe(LocalProbe):
    """A fake: a machine that answers nothing."""

    def facts(self, folders: Sequence[str]) -> Facts:
        """See Probe."""
        raise NodeError("no answer within 60 s")


class RayProbe:
    """Answers for another machine, through an actor that takes none of its resources."""

    def __init__(self, node_id: str, patience_s: float) -> None:
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        actor = ray.remote(num_cpus=0)(LocalProbe)
        self._actor: Any = actor.options(scheduling_strategy=where).remote()
        self._patience_s = patience_s

    def facts(self, folders: Sequence[str]) -> Facts:
        """See Probe."""
        found: Facts = self._ask("facts", folders)
        return found

    def clock_s(self) -> float:
        """See Probe."""
        return float(self._ask("clock_s"))

    def storage(self, folder: str, machine: str, size_bytes: int, marked: bool) -> StorageFacts:
        """See Probe."""
        found: StorageFacts = self._ask("storage", folder, machine, size_bytes, marked)
        return found

    def listen(self) -> list[int]:
        """See Probe."""
        return list(self._ask("listen"))

    def reach(self, targets: Sequence[tuple[str, int]]) -> list[str]:
        """See Probe."""
        return list(self._ask("reach", targets))

    def close(self) -> None:
        """End the actor."""
        with suppress(RayError):
            ray.kill(self._actor)

    def _ask(self, question: str, *words: object) -> Any:
        try:
            answer = getattr(self._actor, question).remote(*words)
            return ray.get(answer, timeout=self._patience_s)
        except (RayError, AttributeError) as error:
            raise NodeError(_reason(error, self._patience_s)) from None


@contextmanager
def connected_cluster(patience_s: float) -> Iterator[Cluster]:
    """The cluster that this process is connected to, while the block lasts."""
    table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in table if node["Alive"]]
    probes = [RayProbe(node["NodeID"], patience_s) for node in alive]
    try:
        pairs = zip(alive, probes, strict=True)
        yield Cluster([_node(*pair) for pair in pairs], _dead(table), _dashboard_port())
    finally:
        for probe in probes:
            probe.close()


def _node(entry: dict[str, Any], probe: Probe) -> Node:
    resources, address = entry["Resources"], entry["NodeManagerAddress"]
    name = entry.get("NodeName") or address
    shown = name if name != address else f"{entry['NodeManagerHostname']} {address}"
    return Node(
        name=shown,
        probe=probe,
        address=address,
        ports=(
            ("raylet", entry["NodeManagerPort"]),
            ("object manager", entry["ObjectManagerPort"]),
        ),
        share=Share(
            store_bytes=int(resources.get("object_store_memory", 0)),
            cpus=resources.get("CPU", 0),
            gpus=resources.get("GPU", 0),
        ),
    )


def _dead(table: list[dict[str, Any]]) -> list[str]:
    return [
        f"{node.get('NodeName') or node['NodeManagerAddress']}: "
        f"{node.get('DeathReasonMessage') or 'no reason is known'}"
        for node in table
        if not node["Alive"]
    ]


def _dashboard_port() -> int:
    node: Any = worker._global_node
    port = str(node.webui_url or "").rpartition(":")[2]
    return int(port) if port.isdigit() else 0


def _refusal(address: str, port: int) -> str:
    try:
        with closing(socket.create_connection((address, port), _CONNECT_S)):
            return ""
    except OSError as error:
        return str(error.strerror or error)


def _temporary_folder() -> str:
    """Where Ray keeps sessions and spills objects on this machine."""
    node: Any = worker._global_node
    folder = node.get_session_dir_path() if node is not None else default_folder()  # type: ignore[no-untyped-call]
    return str(folder)


def _reason(error: Exception, patience_s: float) -> str:
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"no answer within {patience_s:g} s"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
