"""Base of all configuration models, TOML files and content hashes."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from fetal_core import storage
from fetal_core.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON form."""
        return digest(self.model_dump(mode="json"))


def digest(value: object) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_toml(uri: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        StorageError: the file cannot be read.
        ConfigError: it is not TOML; the message holds line and column.
    """
    data = storage.read_bytes(uri)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{uri}: not valid TOML: {error}") from None


def parse(model: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Validate ``values`` and report all faults in one message.

    Raises:
        ConfigError: every fault with its dotted field, its value and the rule it breaks; for an
            unknown key the valid ones and the nearest.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: the configuration is not valid: not a table of settings.")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        faults = describe_faults(model, error)
        raise ConfigError(f"{where}: the configuration is not valid:\n{faults}") from None


def describe_faults(model: type[BaseModel], error: ValidationError, prefix: str = "") -> str:
    """A line for each fault that pydantic found in values for ``model``.

    Args:
        model: what was to be made.
        error: pydantic's.
        prefix: of the fields' names, such as ``train.``.
    """
    return "\n".join(f"  - {_describe(model, fault, prefix)}" for fault in error.errors())


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the leaves of ``override`` put over it."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Dotted names whose values differ, each with the old and the new value."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def nearest(word: str, valid: list[str]) -> str:
    """A hint ``; did you mean 'x'?``, or an empty string."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _describe(model: type[BaseModel], fault: Any, prefix: str) -> str:
    path = (prefix + ".".join(str(part) for part in fault["loc"])).rstrip(".")
    if fault["type"] != "extra_forbidden":
        whole = fault["type"] == "missing" or isinstance(fault["input"], Mapping)
        shown = "" if whole else f" (got {fault['input']!r})"
        return f"{path or 'configuration'}: {fault['msg'].removeprefix('Value error, ')}{shown}"
    owner = _owner(model, fault["loc"][:-1])
    valid = sorted(owner.model_fields)
    hint = nearest(str(fault["loc"][-1]), valid)
    return f"{path}: unknown key{hint or '.'} Valid keys: {', '.join(valid)}"


def _owner(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The innermost model on the way to a field, through tables and lists of models."""
    owner = model
    found: Any = model
    for part in path:
        if found is owner:
            found = owner.model_fields[str(part)].annotation
        else:
            found = next(kind for kind in reversed(get_args(found)) if kind is not Ellipsis)
        if isinstance(found, type) and issubclass(found, BaseModel):
            owner = found
    return owner
