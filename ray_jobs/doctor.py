"""``fetal doctor``: what would go wrong on this machine or cluster, before a run finds out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from fetal_core.config import Config, parse
from ray_jobs.command import parse_args, stage
from ray_jobs.console import console
from ray_jobs.findings import Finding, as_document, count, show

FAILED = 1


@dataclass
class DoctorArgs:
    """Check this machine, or every node of a cluster, and say how to mend what is wrong.

    Exit code 0 if nothing failed, 1 if something did, 2 if the cluster does not answer.
    """

    storage: str = "runs"
    """Folder or s3://BUCKET/PREFIX of runs; objects written there are removed again."""
    address: str = ""
    """host:port of a cluster's head node; without it that of RAY_ADDRESS, else this machine."""
    json: bool = False
    """Print the findings as JSON."""
    probe_mib: int = 8
    """Size of the object by which the storage's speed is measured."""
    patience_s: float = 60
    """How long a node may take for each answer."""


class _Limits(Config):
    probe_mib: int = Field(ge=1, le=1024)
    patience_s: float = Field(gt=0, le=3600)


def main(argv: Sequence[str]) -> int:
    """The command line of the checks."""
    args = parse_args(DoctorArgs, argv, "fetal doctor")
    limits = {"probe_mib": args.probe_mib, "patience_s": args.patience_s}
    parse(_Limits, limits, "fetal doctor")
    if args.address:
        os.environ["RAY_ADDRESS"] = args.address
    findings = check(args)
    if args.json:
        console.print_json(data=as_document(findings))
    else:
        show(findings)
    return FAILED if count(findings)["fail"] else 0


def check(args: DoctorArgs) -> list[Finding]:
    """All findings, of the cluster that RAY_ADDRESS names or of this machine.

    Raises:
        ResourceError: the cluster does not answer.
    """
    # Ray takes a second to import: late, so that wrong flags are told at once.
    from ray_jobs.cluster import connected
    from ray_jobs.examination import examine
    from ray_jobs.machine_facts import hostname, read_facts
    from ray_jobs.node_probe import LocalProbe, Node, connected_cluster

    own, probe_bytes = read_facts([]), args.probe_mib * 2**20
    if os.environ.get("RAY_ADDRESS", "") in ("", "local"):
        return examine([Node(hostname(), LocalProbe())], own, args.storage, probe_bytes)
    with connected(), connected_cluster(args.patience_s) as cluster:
        lost = [
            Finding("dead-node", "cluster", "warn", why, "Look at its logs; replace it or go on.")
            for why in cluster.dead
        ]
        return lost + examine(cluster.nodes, own, args.storage, probe_bytes, cluster.dashboard_port)


if __name__ == "__main__":
    sys.exit(stage("doctor"))
