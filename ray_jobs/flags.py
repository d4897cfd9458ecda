"""Flags into models: all values that break a rule are told together, by their flags' names."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_type_hints

import tyro
from pydantic import BaseModel, ValidationError
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    StructConstructorSpec,
    StructTypeInfo,
)

from fetal_core.config import describe_faults
from fetal_core.errors import ConfigError

ArgsT = TypeVar("ArgsT")


def read_flags(
    kind: type[ArgsT], argv: Sequence[str], prog: str, default: ArgsT | None = None
) -> ArgsT:
    """Read flags into a dataclass; tyro tells of unknown flags and wrong types itself, and exits.

    Raises:
        ConfigError: values that are out of range or do not go together; all of them.
    """
    found = _Faults(kind)
    args: ArgsT = tyro.cli(
        kind,
        args=list(argv),
        prog=prog,
        default=MISSING_NONPROP if default is None else default,
        registry=found.registry,
    )
    if found.faults:
        raise ConfigError(f"{prog}: these settings are not valid:\n" + "\n".join(found.faults))
    return args


class _Faults:
    """Collects what pydantic finds, where tyro would stop at the first."""

    def __init__(self, kind: type) -> None:
        self.faults: list[str] = []
        self.registry = ConstructorRegistry()
        self.registry.struct_rule(self._rule)
        self._prefixes = dict(_models(kind))
        self._broken: list[BaseModel] = []
        self._asking = False

    def _rule(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self._asking or info.type not in self._prefixes:
            return None
        self._asking = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            self._asking = False
        if not isinstance(spec, StructConstructorSpec):
            return None

        @functools.wraps(info.type, updated=())  # its docstring is shown by --help
        def build(**values: Any) -> Any:
            return self._build(info.type, spec, values)

        return replace(spec, instantiate=build)

    def _build(
        self, model: type[BaseModel], spec: StructConstructorSpec, values: dict[str, Any]
    ) -> Any:
        try:
            return spec.instantiate(**values)
        except ValidationError as error:
            # Around a broken part, nothing can be said of the whole.
            if not any(value is part for value in values.values() for part in self._broken):
                self.faults.append(describe_faults(model, error, self._prefixes[model]))
            self._broken.append(model.model_construct(**values))
            return self._broken[-1]


def _models(kind: type, prefix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """The models below a dataclass or a model, each with what its flags begin with."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        notes = getattr(hint, "__metadata__", ())
        unnamed = any(getattr(note, "name", None) == "" for note in notes)
        found = getattr(hint, "__origin__", hint)
        if isinstance(found, type) and issubclass(found, BaseModel):
            own = prefix if unnamed else f"{prefix}{name}."
            yield found, own
            yield from _models(found, own)
