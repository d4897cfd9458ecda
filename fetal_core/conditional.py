"""Small files that several processes change: compare-and-swap on a local disk and in S3."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any

from botocore.exceptions import ClientError

from fetal_core import s3, storage
from fetal_core.errors import StorageError

ATTEMPTS = 30
LOCK_WAIT_S = 10.0
LOCK_POLL_S = 0.005
BACKOFF_S = 0.05
_CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
_UNCHANGED = "304"


class ConflictError(StorageError):
    """Another process changed the same file first."""


@dataclass(frozen=True)
class Snapshot:
    """Content of a file, and what tells it from any other content of that file."""

    data: bytes
    etag: str


def read(uri: str, known: Snapshot | None = None) -> Snapshot | None:
    """The file as it is now, None where there is none.

    Args:
        uri: the file.
        known: what it was at the last look; an object that has not changed is not sent again.

    Raises:
        StorageError: it cannot be read.
    """
    if storage.is_remote(uri):
        return _read_object(uri, known)
    try:
        data = Path(storage.absolute(uri)).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{uri}: cannot be read: {error}") from None
    return Snapshot(data, hashlib.sha256(data).hexdigest())


def write(uri: str, data: bytes, expected: Snapshot | None, mode: int = 0o644) -> None:
    """Replace a file if it still is as ``expected``; with None, create it if there is none.

    Args:
        uri: the file.
        data: its new content, which must differ from all that it ever held: otherwise an old
            state that came back would pass for an unchanged one.
        expected: what ``read`` gave.
        mode: permissions of a local file, less the umask.

    Raises:
        ConflictError: it is not as expected; nothing has been written.
        StorageError: it cannot be written, or the store does not know conditional writes.
    """
    if storage.is_remote(uri):
        _write_object(uri, data, expected)
        return
    path = Path(storage.absolute(uri))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if read(uri) != expected:
                raise _conflict(uri)
            _replace(path, data, mode)
    except OSError as error:
        raise StorageError(f"{uri}: cannot be written: {error}") from None


def update(uri: str, change: Callable[[bytes | None], bytes], mode: int = 0o644) -> bytes:
    """Put ``change(old content)`` in a file's place; after a conflict, once more from the new one.

    Raises:
        ConflictError: others were first at each of ``ATTEMPTS`` attempts.
        StorageError: it cannot be read or written.
    """
    for attempt in range(1, ATTEMPTS + 1):
        current = read(uri)
        data = change(current.data if current else None)
        if current is not None and data == current.data:
            break
        try:
            write(uri, data, current, mode)
            break
        except ConflictError:
            if attempt == ATTEMPTS:
                raise
            time.sleep(SystemRandom().uniform(0, BACKOFF_S))
    return data


def _conflict(uri: str) -> ConflictError:
    return ConflictError(f"{uri}: another process changed it meanwhile. Look at it and try again.")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which the system releases when its process ends, however it ends."""
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    deadline_s = time.monotonic() + LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise _conflict(str(path)) from None
                time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(lock)


def _replace(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_object(uri: str, known: Snapshot | None = None) -> Snapshot | None:
    where = _key(uri)
    if known is not None and '"' in known.etag:
        where |= {"IfNoneMatch": known.etag}

    def get(client: Any) -> Snapshot:
        answer = client.get_object(**where)
        data = answer["Body"].read()
        # A store that gives no ETag can be read; `_write_object` refuses to change what it holds.
        return Snapshot(data, answer.get("ETag") or hashlib.sha256(data).hexdigest())

    try:
        return s3.call(uri, "read", get, answers={"NoSuchKey", _UNCHANGED})
    except ClientError as error:
        return known if s3.code(error) == _UNCHANGED else None


def _write_object(uri: str, data: bytes, expected: Snapshot | None) -> None:
    if expected is not None and '"' not in expected.etag:
        raise StorageError(
            f"{uri}: this store gives no ETag, so that changes of others cannot be noticed. "
            "Use one with conditional writes."
        )
    condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected.etag}
    if not _put(uri, data, condition):
        # A request whose answer was lost is repeated; then its own write is in the way.
        now = _read_object(uri)
        if now is None or now.data != data:
            raise _conflict(uri)
    elif expected is None and _put(uri, data, condition):
        raise StorageError(
            f"{uri}: this store overwrites in spite of If-None-Match, so that concurrent changes "
            "would be lost. Use one with conditional writes, as AWS S3 has them."
        )


def _put(uri: str, data: bytes, condition: dict[str, str]) -> bool:
    """Write an object; False if the condition did not hold."""
    where = _key(uri)
    try:
        s3.call(
            uri,
            "written",
            lambda client: client.put_object(**where, Body=data, **condition),
            answers=_CONFLICTS,
        )
    except ClientError:
        return False
    return True


def _key(uri: str) -> dict[str, str]:
    where = s3.place(uri)
    if not where["Key"]:
        raise StorageError(f"{uri}: not a path and not s3://BUCKET/KEY.")
    return where
