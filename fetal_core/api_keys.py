"""API keys of the endpoint: shown once, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime

from fetal_core import conditional, storage
from fetal_core.conditional import Snapshot
from fetal_core.config import Config, parse
from fetal_core.errors import ConfigError, FetalError, StorageError

logger = logging.getLogger(__name__)

PREFIX = "fp"
RELOAD_S = 1.0
GRACE_S = 60.0
LABEL_CHARACTERS = 80
_MODE = 0o600
_NO_KEY = "0" * 64


class KeyStoreError(FetalError):
    """A file of keys is damaged or unsafe, or a key is not in it."""


class ApiKey(Config):
    """What is kept of a key.

    Attributes:
        sha256: of the whole key, in hex. A slow hash protects words that can be guessed; a key is
            256 random bits, which nobody can try out, and a fast hash costs each request nothing.
        created: ISO 8601, UTC.
        expires: when it ceases to be valid, None for never.
        revoked: when it was revoked, None if it was not.
    """

    id: str
    label: str
    sha256: str
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class _Keys(Config):
    """Content of the file."""

    keys: tuple[ApiKey, ...] = ()


class KeyStore:
    """A file of keys, on a local disk or in S3; safe for concurrent threads and processes.

    ``check`` reads the file again when its last look is older than ``reload_s``. While it cannot be
    read, the keys known so far stay valid for ``grace_s``; then all are refused. A look at a local
    file takes microseconds, one at S3 a round trip: there, call ``check`` off an event loop.
    """

    def __init__(self, uri: str, reload_s: float = RELOAD_S, grace_s: float = GRACE_S) -> None:
        self.uri = storage.absolute(uri)
        self._reload_s, self._grace_s = reload_s, grace_s
        self._lock = threading.Lock()
        self._seen: Snapshot | None = None
        self._keys: dict[str, ApiKey] = {}
        self._looked_s: float | None = None
        self._read_s: float | None = None

    def create(self, label: str, expires: datetime | None = None) -> tuple[str, str]:
        """Add a key.

        Args:
            label: who it is for; need not be unique.
            expires: when it ceases to be valid, with its time zone.

        Returns:
            Its id, and the key itself, which is kept nowhere.

        Raises:
            KeyStoreError: the label cannot be shown in a line, ``expires`` has passed, or the file
                is damaged or others may write to it.
            StorageError: the file cannot be written.
        """
        now = _now()
        if not label.strip() or not label.isprintable() or len(label) > LABEL_CHARACTERS:
            raise KeyStoreError(
                f"label {label!r}: give 1 to {LABEL_CHARACTERS} printable characters, "
                "such as who will use the key."
            )
        if expires is not None and expires <= now:
            raise KeyStoreError(f"the key would have expired at {expires}. Give a later time.")
        key_id = secrets.token_hex(6)
        secret = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        key = ApiKey(id=key_id, label=label, sha256=_hash(secret), created=now, expires=expires)
        self._change(lambda keys: (*keys, key))
        return key_id, secret

    def revoke(self, key_id: str) -> ApiKey:
        """Make a key invalid for good; it stays in the list.

        Raises:
            KeyStoreError: no such key, or the file is damaged or others may write to it.
            StorageError: the file cannot be written.
        """
        now = _now()

        def revoked(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if all(key.id != key_id for key in keys):
                known = ", ".join(f"{key.id} ({key.label})" for key in keys) or "none"
                raise KeyStoreError(f"{self.uri}: no key {key_id!r}. It holds: {known}.")
            return tuple(
                key.model_copy(update={"revoked": now})
                if key.id == key_id and key.revoked is None
                else key
                for key in keys
            )

        return next(key for key in self._change(revoked) if key.id == key_id)

    def list(self) -> tuple[ApiKey, ...]:
        """All keys ever created, oldest first.

        Raises:
            KeyStoreError: the file is damaged or others may write to it.
            StorageError: it cannot be read.
        """
        current = self._read()
        return self._parse(current.data if current else None)

    def check(self, presented: str) -> bool:
        """Whether a key is valid now; takes equally long for unknown, wrong and right ones."""
        self._refresh()
        key_id = presented.split("_", 2)[1] if presented.count("_") > 1 else ""
        key = self._keys.get(key_id)
        equal = hmac.compare_digest(_hash(presented), key.sha256 if key else _NO_KEY)
        return equal and key is not None and key.is_valid(_now())

    def _refresh(self) -> None:
        """Read the file if it is time to: one thread, while the others use what is known."""
        if not self._is_due() or not self._lock.acquire(blocking=self._read_s is None):
            return
        try:
            if self._is_due():
                self._look()
        finally:
            self._lock.release()

    def _is_due(self) -> bool:
        return self._looked_s is None or time.monotonic() - self._looked_s >= self._reload_s

    def _look(self) -> None:
        now_s = time.monotonic()
        try:
            current = self._read(self._seen)
            if current != self._seen:
                self._keys = {key.id: key for key in self._parse(current.data if current else None)}
            self._seen, self._read_s = current, now_s
        except FetalError as error:
            if self._read_s is None:
                raise
            if now_s - self._read_s >= self._grace_s:
                self._keys, self._seen = {}, None
                logger.error("all API keys are refused: %s", error)
            else:
                logger.warning("API keys may be out of date: %s", error)
        self._looked_s = now_s

    def _read(self, known: Snapshot | None = None) -> Snapshot | None:
        self._check_permissions()
        return conditional.read(self.uri, known)

    def _change(
        self, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]
    ) -> tuple[ApiKey, ...]:
        """Put the changed keys in the file's place; nobody's change is lost."""

        def changed(data: bytes | None) -> bytes:
            keys = _Keys(keys=change(self._parse(data)))
            return (keys.model_dump_json(indent=2) + "\n").encode()

        self._check_permissions()
        return self._parse(conditional.update(self.uri, changed, _MODE))

    def _check_permissions(self) -> None:
        if storage.is_remote(self.uri):
            return
        try:
            mode = Path(self.uri).stat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{self.uri}: cannot be read: {error}") from None
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeyStoreError(
                f"{self.uri}: other users may write to it, and so add keys. Look at it with "
                f"`fetal key list` after `chmod 600 {self.uri}`."
            )

    def _parse(self, data: bytes | None) -> tuple[ApiKey, ...]:
        if data is None:
            return ()
        try:
            return parse(_Keys, json.loads(data), self.uri).keys
        except (ConfigError, ValueError) as error:
            raise KeyStoreError(f"{self.uri}: not a file of keys: {error}") from None


def _hash(presented: str) -> str:
    return hashlib.sha256(presented.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
