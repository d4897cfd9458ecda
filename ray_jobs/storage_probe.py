"""Whether a machine can keep runs and a registry in a storage: tried with objects of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError

from fetal_core import conditional, storage
from fetal_core.conditional import ConflictError
from fetal_core.errors import FetalError, StorageError

_MARK = "seen-by-all"
_TIMEOUT_S = 5


@dataclass(frozen=True)
class StorageFacts:
    """What a machine could do in a storage.

    Attributes:
        fault: the first thing that did not work, and why; empty if all did.
        write_bytes_s: speed of writing one object, and of reading it.
        read_bytes_s: likewise; of a local disk, mostly of the system's memory.
        shared: whether it sees what another machine has written; None where none was to be seen.
        ahead_s: by how much this machine's clock is ahead of the store's; None if it has none.
    """

    fault: str = ""
    write_bytes_s: float = 0.0
    read_bytes_s: float = 0.0
    shared: bool | None = None
    ahead_s: float | None = None


@contextmanager
def trial_folder(uri: str, name: str) -> Iterator[str]:
    """A folder for trials under ``uri``, of which nothing is left afterwards."""
    missing = _missing_parents(uri)
    folder = storage.join(storage.absolute(uri), name)
    try:
        yield folder
    finally:
        _wipe(folder)
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


def leave_mark(folder: str) -> None:
    """Write what all machines shall see.

    Raises:
        StorageError: it cannot be written.
    """
    storage.write_bytes(storage.join(folder, _MARK), folder.encode())


def try_storage(folder: str, machine: str, size_bytes: int, marked: bool) -> StorageFacts:
    """Write, read, list, compare-and-swap and delete in a folder for trials.

    Args:
        folder: as ``trial_folder`` gives it; a path or ``s3://BUCKET/PREFIX/NAME``.
        machine: name of this machine, unlike that of all others.
        size_bytes: of the object by which speed is measured.
        marked: whether another machine has left its mark there.
    """
    ahead_s: float | None = None
    try:
        if storage.is_remote(folder):
            ahead_s = _ask_store(folder)
        with trial_folder(folder, machine) as own:
            shared = _sees_mark(folder) if marked else None
            write_s, read_s = _write_and_read(own, size_bytes)
            _swap(own)
        if storage.exists(own):
            raise StorageError("delete: what was written is still there")
    except _ClockError as error:
        return StorageFacts(str(error), ahead_s=error.ahead_s)
    except (FetalError, OSError) as error:
        return StorageFacts(str(error), ahead_s=ahead_s)
    return StorageFacts("", size_bytes / write_s, size_bytes / read_s, shared, ahead_s)


class _ClockError(StorageError):
    """The store refused a request; its answer tells the time all the same."""

    def __init__(self, reason: str, ahead_s: float | None) -> None:
        super().__init__(reason)
        self.ahead_s = ahead_s


def _ask_store(folder: str) -> float | None:
    """By how much this clock is ahead of the store's, to the second in which it answers.

    Raises:
        StorageError: the store cannot be reached or refuses to list.
    """
    bucket, _, key = folder.removeprefix("s3://").partition("/")
    before_s = time.time()
    try:
        answer = _client().list_objects_v2(Bucket=bucket, Prefix=f"{key}/", MaxKeys=1)
    except ClientError as error:
        ahead_s = _ahead_s(error.response, before_s)
        raise _ClockError(f"list: {error}", ahead_s) from None
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"list: {error}") from None
    return _ahead_s(answer, before_s)


def _ahead_s(answer: dict[str, Any], before_s: float) -> float | None:
    """0 if the store's second lies between the request and its answer."""
    after_s = time.time()
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if date is None:
        return None
    store_s = parsedate_to_datetime(date).timestamp()
    if store_s + 1 < before_s:
        return before_s - store_s - 1
    return min(0.0, after_s - store_s)


def _sees_mark(folder: str) -> bool:
    uri = storage.join(folder, _MARK)
    return storage.exists(uri) and storage.read_bytes(uri) == folder.encode()


def _write_and_read(folder: str, size_bytes: int) -> tuple[float, float]:
    uri, data = storage.join(folder, "probe"), os.urandom(size_bytes)
    started_s = time.perf_counter()
    storage.write_bytes(uri, data)
    written_s = time.perf_counter()
    if storage.read_bytes(uri) != data:
        raise StorageError(f"{uri}: reads back otherwise than it was written")
    read_s = time.perf_counter()
    if uri not in list(storage.list_files(folder)):
        raise StorageError(f"{uri}: was written, and listing {folder} does not show it")
    return written_s - started_s, read_s - written_s


def _swap(folder: str) -> None:
    """What the registry lives on: create once, replace only what has not changed."""
    uri = storage.join(folder, "swap")
    conditional.write(uri, b"first", None)
    before = conditional.read(uri)
    with suppress(ConflictError):
        conditional.write(uri, b"second", None)
        raise StorageError(f"{uri}: was created twice; conditional writes do not work here")
    conditional.write(uri, b"third", before)
    with suppress(ConflictError):
        conditional.write(uri, b"fourth", before)
        raise StorageError(f"{uri}: this store overwrites in spite of If-Match")


def _missing_parents(uri: str) -> list[Path]:
    """Folders that a trial would create, innermost first."""
    if storage.is_remote(uri):
        return []
    path = Path(storage.absolute(uri))
    # Not `Path.exists`, which raises where a folder may not be looked into.
    return [each for each in (path, *path.parents) if not os.path.exists(each)]  # noqa: PTH110


def _wipe(folder: str) -> None:
    if not storage.is_remote(folder):
        with suppress(StorageError):
            storage.remove(folder)
        return
    bucket, _, key = folder.removeprefix("s3://").partition("/")
    with suppress(BotoCoreError, ClientError):
        client = _client()
        listed = client.list_objects_v2(Bucket=bucket, Prefix=f"{key}/").get("Contents", [])
        for item in listed:
            client.delete_object(Bucket=bucket, Key=item["Key"])
        # Of a bucket that keeps old versions, these remain otherwise.
        versions = client.list_object_versions(Bucket=bucket, Prefix=f"{key}/")
        for item in [*versions.get("Versions", []), *versions.get("DeleteMarkers", [])]:
            client.delete_object(Bucket=bucket, Key=item["Key"], VersionId=item["VersionId"])


def _client() -> Any:
    """As ``fetal_core.conditional`` has it, but not as patient."""
    config = BotoConfig(
        retries={"total_max_attempts": 2}, connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S
    )
    return boto3.session.Session().client("s3", config=config)
