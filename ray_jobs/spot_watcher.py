"""Drain a Ray node when EC2 announces that it takes the spot instance it runs on.

``python -m ray_jobs.spot_watcher --address HEAD:6379`` runs beside Ray on each worker; see
``cluster.yaml``. Ray does not look for the notice itself.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import ray
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

from fetal_core.errors import ConfigError, FetalError
from ray_jobs.command import parse_args, stage
from ray_jobs.spot_metadata import URL, MetadataError, MetadataService, SpotNotice

logger = logging.getLogger(__name__)

_GCS_TIMEOUT_S = 10
_DRAIN_TIMEOUT_S = 60
_MIN_POLL_S = 0.1
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class DrainError(FetalError):
    """Ray could not be told that the node is about to go."""


@dataclass
class WatcherArgs:
    """Watch for EC2's spot interruption notice and drain this machine's Ray node when it comes."""

    address: str
    """HOST:PORT of the Ray cluster's head node."""
    metadata_url: str = URL
    """Instance metadata service."""
    poll_s: float = 2.0
    """Seconds between two looks."""


@dataclass(frozen=True)
class Machine:
    """What tells this machine's Ray node from the others.

    Attributes:
        instance_id: EC2's id, which Ray's cluster launcher gives to the nodes it starts.
        address: private IPv4 address.
    """

    instance_id: str
    address: str

    @classmethod
    def from_metadata(cls, metadata: MetadataService) -> Machine:
        """This machine.

        Raises:
            MetadataError: no answer, or an unexpected one.
        """
        return cls(metadata.get("instance-id") or "", metadata.get("local-ipv4") or "")


class Watcher:
    """Looks for the notice until the node is draining; trouble on the way is told and outlasted."""

    def __init__(
        self,
        metadata: MetadataService,
        drain: Callable[[Machine, SpotNotice], Sequence[str]],
        poll_s: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``drain`` returns the ids of the nodes that are draining; see ``drain_machine``."""
        self._metadata = metadata
        self._drain = drain
        self._poll_s = poll_s
        self._sleep = sleep
        self._machine: Machine | None = None
        self._notice: SpotNotice | None = None
        self._rebalance: str | None = None
        self._trouble = ""

    def run(self) -> tuple[SpotNotice, Sequence[str]]:
        """Wait for the notice and drain.

        Returns:
            The notice, and the hexadecimal ids of the nodes that are draining.
        """
        while True:
            try:
                nodes = self._look()
                self._tell("")
            except (MetadataError, DrainError) as error:
                nodes = []
                self._tell(str(error))
            if nodes and self._notice is not None:
                return self._notice, nodes
            self._sleep(self._poll_s)

    def _look(self) -> Sequence[str]:
        if self._machine is None:
            self._machine = Machine.from_metadata(self._metadata)
            logger.info("watching instance %s", self._machine.instance_id)
        if self._notice is None:
            self._notice = self._metadata.spot_notice(datetime.now(UTC))
            if self._notice is None:
                self._look_for_risk()
                return []
            logger.warning("EC2 will %s this instance at %s", *_words(self._notice))
        return self._drain(self._machine, self._notice)

    def _look_for_risk(self) -> None:
        found = self._metadata.rebalance_time()
        if found is not None and found != self._rebalance:
            logger.warning("EC2 sees an elevated risk of interruption since %s", found)
        self._rebalance = found

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            logger.warning("%s; trying again every %g s", trouble, self._poll_s)
        elif self._trouble and not trouble:
            logger.info("all answers again")
        self._trouble = trouble


def drain_machine(gcs_address: str, machine: Machine, notice: SpotNotice) -> list[str]:
    """Let Ray drain the nodes of a machine, with the notice's deadline.

    Returns:
        Their hexadecimal ids.

    Raises:
        DrainError: the cluster does not answer, knows no such node, or refused.
    """
    node_ids = nodes_of(gcs_address, machine)
    for node_id in node_ids:
        _drain_node(gcs_address, node_id, notice)
    return node_ids


def nodes_of(gcs_address: str, machine: Machine) -> list[str]:
    """Hexadecimal ids of a machine's live Ray nodes: by instance id, else by address.

    Raises:
        DrainError: the cluster does not answer, or knows no such node.
    """
    alive = GcsNodeInfo.ALIVE
    try:
        client = ray._raylet.GcsClient(address=gcs_address)  # type: ignore[attr-defined]
        found = client.get_all_node_info(timeout=_GCS_TIMEOUT_S, state_filter=alive)
    except ray.exceptions.RayError as error:
        raise DrainError(f"{gcs_address}: no answer from Ray: {error}") from None
    infos = {node_id.hex(): info for node_id, info in found.items()}
    own = machine.instance_id
    by_id = [node_id for node_id, info in infos.items() if own and info.instance_id == own]
    nodes = by_id or [
        node_id for node_id, info in infos.items() if info.node_manager_address == machine.address
    ]
    if not nodes:
        raise DrainError(
            f"{gcs_address}: no live Ray node of instance {machine.instance_id} ({machine.address})"
        )
    return nodes


def _drain_node(gcs_address: str, node_id: str, notice: SpotNotice) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--address", gcs_address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot interruption: {} at {}".format(*_words(notice))]
    command += ["--deadline-remaining-seconds", str(notice.remaining_s(datetime.now(UTC)))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRAIN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise DrainError(f"ray drain-node: no answer within {_DRAIN_TIMEOUT_S} s") from None
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise DrainError(f"ray drain-node: exit code {done.returncode}: {reason}")


def _words(notice: SpotNotice) -> tuple[str, str]:
    return notice.action, f"{notice.deadline:%Y-%m-%dT%H:%M:%SZ}"


def main(argv: Sequence[str]) -> None:
    """The command line; ends when the node is draining."""
    args = parse_args(WatcherArgs, argv, "python -m ray_jobs.spot_watcher")
    if not args.poll_s >= _MIN_POLL_S:
        raise ConfigError(f"--poll-s {args.poll_s:g}: give at least {_MIN_POLL_S:g}.")
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, force=True)
    watcher = Watcher(
        MetadataService(args.metadata_url),
        lambda machine, notice: drain_machine(args.address, machine, notice),
        args.poll_s,
    )
    notice, nodes = watcher.run()
    left_s = notice.remaining_s(datetime.now(UTC))
    logger.warning("Ray drains %s, %d s before the instance goes", ", ".join(nodes), left_s)


if __name__ == "__main__":
    sys.exit(stage("spot_watcher"))
