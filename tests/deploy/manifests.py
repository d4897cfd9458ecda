"""The Kubernetes manifests as `kubectl kustomize` renders them, and walks over them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(
    str(found.parent.relative_to(KUBERNETES / "overlays"))
    for found in (KUBERNETES / "overlays").rglob("kustomization.yaml")
)
# Where each of KubeRay's kinds holds the description of a Ray cluster.
CLUSTER_FIELDS = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}

Object = dict[str, Any]


def render(folder: Path) -> str:
    """What `kubectl apply -k` sends."""
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [str(kubectl), "kustomize", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@lru_cache
def rendered(overlay: str) -> str:
    return render(KUBERNETES / "overlays" / overlay)


def objects(overlay: str) -> list[Object]:
    return parsed(rendered(overlay))


def parsed(text: str) -> list[Object]:
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def named(overlay: str, kind: str, name: str | None = None) -> Object:
    (found,) = (
        one
        for one in objects(overlay)
        if one["kind"] == kind and name in (None, one["metadata"]["name"])
    )
    return found


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@dataclass(frozen=True)
class RayPods:
    """Head or workers of a Ray cluster.

    Attributes:
        where: for messages, such as ``gpu RayJob/fetal-train workers``.
        group: what KubeRay calls a group's specification.
        cluster: the specification of the whole cluster.
        role: ``head`` or ``worker``.
    """

    where: str
    group: Object
    cluster: Object
    role: str

    @property
    def spec(self) -> Object:
        spec: Object = self.group["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (container,) = self.spec["containers"]
        found: Object = container
        return found

    @property
    def labels(self) -> dict[str, str]:
        """Those of the template and those that KubeRay adds."""
        own: dict[str, str] = self.group["template"]["metadata"]["labels"]
        return own | {"ray.io/node-type": self.role}

    @property
    def params(self) -> dict[str, str]:
        params: dict[str, str] = self.group["rayStartParams"]
        return params


def ray_pods(overlay: str) -> Iterator[RayPods]:
    """All Ray pods that an overlay asks for."""
    for one in objects(overlay):
        if one["kind"] in CLUSTER_FIELDS:
            cluster = at(one, CLUSTER_FIELDS[one["kind"]])
            where = f"{overlay} {one['kind']}/{one['metadata']['name']}"
            yield RayPods(f"{where} head", cluster["headGroupSpec"], cluster, "head")
            for group in cluster["workerGroupSpecs"]:
                yield RayPods(f"{where} {group['groupName']}", group, cluster, "worker")


ALL_PODS = [pods for overlay in OVERLAYS for pods in ray_pods(overlay)]


def size(quantity: str | int) -> float:
    """Kubernetes' quantities, in bytes or pieces: ``500m``, ``4Gi``, ``"2"``."""
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1e3, "M": 1e6, "G": 1e9}
    text = str(quantity)
    unit = next((unit for unit in units if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * units.get(unit, 1)
