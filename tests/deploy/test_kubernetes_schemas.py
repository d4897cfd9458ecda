"""Manifests against the schemas of what reads them, with unknown fields forbidden."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from jsonschema_rs import Draft202012Validator
from ray.scripts.scripts import start

from closed_schema import METADATA, closed, load_closed
from manifests import ALL_PODS, CLUSTER_FIELDS, OVERLAYS, ROOT, RayPods, at, named, objects

KUBERNETES_VERSION = "1.32"  # the oldest that deploy/kubernetes/README.md names
# Their keys are the user's own; rayStartParams has a test of its own.
MAPS = {"labels", "annotations", "matchLabels", "requests", "limits", "rayStartParams"}

_STRING = {"type": "string"}
# What of Prometheus operator's PodMonitor (monitoring.coreos.com/v1) is used here.
POD_MONITOR = closed(
    {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": "monitoring.coreos.com/v1"},
            "kind": {"const": "PodMonitor"},
            "metadata": METADATA,
            "spec": {
                "type": "object",
                "required": ["selector", "podMetricsEndpoints"],
                "properties": {
                    "selector": {
                        "type": "object",
                        "properties": {
                            "matchLabels": {"type": "object", "additionalProperties": _STRING}
                        },
                    },
                    "podTargetLabels": {"type": "array", "items": _STRING},
                    "podMetricsEndpoints": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["port"],
                            "properties": {
                                "port": _STRING,
                                "path": {"type": "string", "pattern": "^/"},
                                "interval": {"type": "string", "pattern": "^[0-9]+[sm]$"},
                                "authorization": {
                                    "type": "object",
                                    "properties": {
                                        "type": _STRING,
                                        "credentials": {
                                            "type": "object",
                                            "required": ["name", "key"],
                                            "properties": {"name": _STRING, "key": _STRING},
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    }
)

_TEXTS = {"type": "object", "additionalProperties": _STRING}
_DURATION = {"type": "string", "pattern": "^[0-9]+[smh]$"}
# And of its PrometheusRule; promtool reads what the rules say (test_kubernetes_alerts.py).
PROMETHEUS_RULE = closed(
    {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": "monitoring.coreos.com/v1"},
            "kind": {"const": "PrometheusRule"},
            "metadata": METADATA,
            "spec": {
                "type": "object",
                "required": ["groups"],
                "properties": {
                    "groups": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["name", "rules"],
                            "properties": {
                                "name": {"type": "string", "minLength": 1},
                                "interval": _DURATION,
                                "rules": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "required": ["expr"],
                                        "oneOf": [
                                            {"required": ["alert"]},
                                            {"required": ["record"]},
                                        ],
                                        "properties": {
                                            "alert": _STRING,
                                            "record": _STRING,
                                            "expr": _STRING,
                                            "for": _DURATION,
                                            "labels": _TEXTS,
                                            "annotations": _TEXTS,
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    }
)
OPERATORS = {"PodMonitor": POD_MONITOR, "PrometheusRule": PROMETHEUS_RULE}


def faults(validator: Draft202012Validator, one: dict[str, Any]) -> list[str]:
    return [f"{error.instance_path}: {error.message}" for error in validator.iter_errors(one)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_what_its_schema_describes(overlay: str, kuberay_schemas: Path) -> None:
    found = objects(overlay)
    for one in found:
        if one["kind"] in CLUSTER_FIELDS:
            _, validator = load_closed(kuberay_schemas / f"{one['kind']}.json")
            assert faults(validator, one) == []
        elif one["kind"] in OPERATORS:
            assert faults(Draft202012Validator(OPERATORS[one["kind"]]), one) == []
        else:
            kubernetes_validate.validate(one, KUBERNETES_VERSION, strict=True)
    assert {one["kind"] for one in found} & set(CLUSTER_FIELDS)


def keys(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all keys that a schema names."""
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from keys(part, (*path, index))
    elif isinstance(value, dict) and not (path and path[-1] in MAPS):
        for key, part in value.items():
            yield (*path, key)
            yield from keys(part, (*path, key))


def misspelt(one: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    broken = copy.deepcopy(one)
    owner = at(broken, path[:-1])
    owner[f"{path[-1]}x"] = owner.pop(path[-1])
    return broken


def test_any_misspelt_key_is_found(kuberay_schemas: Path) -> None:
    tried = 0
    for overlay in ("cpu", "cpu/train"):
        for one in objects(overlay):
            if one["kind"] not in CLUSTER_FIELDS:
                continue
            _, validator = load_closed(kuberay_schemas / f"{one['kind']}.json")
            unseen = [path for path in keys(one) if validator.is_valid(misspelt(one, path))]
            assert unseen == []
            tried += sum(1 for _ in keys(one))
    assert tried > 500


@pytest.mark.parametrize("kind", OPERATORS)
def test_any_misspelt_key_of_prometheus_operators_kinds_is_found(kind: str) -> None:
    validator = Draft202012Validator(OPERATORS[kind])
    found = [one for one in objects("cpu") if one["kind"] == kind]
    assert found
    for one in found:
        assert [path for path in keys(one) if validator.is_valid(misspelt(one, path))] == []


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("NetworkPolicy", "callers", ("spec", "policyTypes")),
        ("NetworkPolicy", "callers", ("spec", "ingress", 0, "from", 0, "namespaceSelector")),
        ("PodDisruptionBudget", "fetal-serve", ("spec", "maxUnavailable")),
        ("ServiceAccount", "fetal-worker", ("automountServiceAccountToken",)),
    ],
)
def test_a_misspelt_key_of_kubernetes_own_kinds_is_found(
    kind: str, name: str, path: tuple[str | int, ...]
) -> None:
    one = named("cpu", kind, name)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt(one, path), KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("pods", ALL_PODS, ids=lambda pods: pods.where)
def test_ray_start_knows_its_parameters(pods: RayPods) -> None:
    known = {option.removeprefix("--") for one in start.params for option in one.opts}
    assert set(pods.params) <= known
    assert all(isinstance(value, str) for value in pods.params.values())


def test_the_schemas_are_of_the_version_that_the_readme_installs(kuberay_schemas: Path) -> None:
    source, _ = load_closed(kuberay_schemas / "RayCluster.json")
    readme = (ROOT / "deploy/kubernetes/README.md").read_text("utf-8")
    assert "v1.7.0" in source
    assert "--version 1.7.0" in readme
