"""JSON schemas that refuse what they do not name."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema_rs

# Kubernetes' ObjectMeta, of which resource definitions say no more than that it is an object.
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def closed(schema: Any) -> Any:
    """A copy in which every object has the properties that are named, and no others.

    Objects without named properties are maps, and stay as they are.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: closed(part) for key, part in schema.items()}
    is_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        copy.setdefault("additionalProperties", False)
    return copy


@lru_cache
def load_closed(file: Path) -> tuple[str, jsonschema_rs.Draft202012Validator]:
    """What a schema is of, and its validator with unknown fields forbidden."""
    content = json.loads(file.read_text("utf-8"))
    schema = closed(content["openAPIV3Schema"])
    schema["properties"]["metadata"] = METADATA
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    schema["properties"]["apiVersion"] = {"const": content["apiVersion"]}
    schema["properties"]["kind"] = {"const": content["kind"]}
    return content["source"], jsonschema_rs.Draft202012Validator(schema)
