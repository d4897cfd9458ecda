"""What the registry records of versions and aliases, and the names that it allows."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Literal, TypeVar

from fetal_core.config import Config, parse
from fetal_core.errors import ConfigError, FetalError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

RecordT = TypeVar("RecordT", bound=Config)


class RegistryError(FetalError):
    """A model, version or alias is not there, is damaged, or may not be named so."""


class Claim(Config):
    """Content of ``claim.json``: which files a number stands for."""

    content: str
    created: str


class VersionInfo(Config):
    """Content of ``version.json``.

    Attributes:
        number: of the version, from 1.
        created: when it was registered, ISO 8601, UTC.
        source: where the bundle was copied from.
        files: SHA-256 (hex) of every file, by its path in the bundle.
        metrics: headline figures in [0, 1]: ``test_...`` of the test part, ``val_...`` of
            validation.
        git_commit: of the source tree that trained the model.
    """

    number: int
    created: str
    source: str
    files: dict[str, str]
    metrics: dict[str, float]
    git_commit: str | None


class Move(Config):
    """One change of an alias; ``id`` is unique."""

    id: str
    kind: Literal["promote", "rollback"]
    version: int
    moved: str


class AliasState(Config):
    """Where an alias points, the versions that rollbacks go back to, and all of its moves."""

    version: int
    previous: tuple[int, ...]
    history: tuple[Move, ...]

    @property
    def etag(self) -> str:
        """Differs after every move."""
        return self.history[-1].id

    @classmethod
    def first(cls, version: int) -> AliasState:
        """A new alias."""
        return cls(version=version, previous=(), history=(_move("promote", version),))

    def promoted(self, version: int) -> AliasState:
        """After a promotion."""
        return AliasState(
            version=version,
            previous=(*self.previous, self.version),
            history=(*self.history, _move("promote", version)),
        )

    def rolled_back(self) -> AliasState:
        """After a rollback; there must be a previous version."""
        *previous, version = self.previous
        return AliasState(
            version=version,
            previous=tuple(previous),
            history=(*self.history, _move("rollback", version)),
        )


def _move(kind: Literal["promote", "rollback"], version: int) -> Move:
    return Move(id=uuid.uuid4().hex, kind=kind, version=version, moved=now())


def now() -> str:
    """The present time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parse_record(kind: type[RecordT], data: bytes, uri: str) -> RecordT:
    """Read a record.

    Raises:
        RegistryError: it is damaged.
    """
    try:
        return parse(kind, json.loads(data), uri)
    except (ConfigError, ValueError) as error:
        raise RegistryError(f"{uri}: damaged, restore it from a copy: {error}") from None


def dump_record(record: Config) -> bytes:
    """A record as indented JSON."""
    return (json.dumps(record.model_dump(mode="json"), indent=2) + "\n").encode()


def check_name(kind: Literal["model", "alias"], name: str) -> None:
    """Refuse names that are no safe path segment on every file system, or look like a number.

    Raises:
        RegistryError: the name breaks the rule, which the message states.
    """
    if not _NAME.fullmatch(name) or name.isdecimal():
        raise RegistryError(
            f"{name!r} cannot name {'an alias' if kind == 'alias' else 'a model'}. Use up to 64 of "
            "a-z, 0-9, '.', '_' and '-', beginning with a letter or digit, not digits alone."
        )
