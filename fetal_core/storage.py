"""Files on a local disk or in S3, behind one set of functions; writes are atomic."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fetal_core import objects
from fetal_core.errors import StorageError
from fetal_core.objects import Entry

READ_AHEAD = 16
"""Objects that are being fetched while the one before them is worked on."""

_COPY_BYTES = 2**23


class FileNameError(StorageError):
    """A file of a folder has a name that is not text."""


def is_remote(uri: str) -> bool:
    """Whether ``uri`` names an object store rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """``uri`` unchanged if remote, else as an absolute local path."""
    return uri.rstrip("/") if is_remote(uri) else str(Path(uri.removeprefix("file://")).absolute())


def join(uri: str, *parts: str) -> str:
    """``uri`` extended by path segments."""
    if is_remote(uri):
        return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])
    return str(Path(uri.removeprefix("file://"), *parts))


def name(uri: str) -> str:
    """The last segment of ``uri``."""
    return PurePosixPath(uri.rstrip("/")).name


def exists(uri: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        StorageError: the storage does not answer.
    """
    if is_remote(uri):
        return objects.entry(uri) is not None or objects.is_folder(uri)
    return _stat(uri) is not None


def is_file(uri: str) -> bool:
    """Whether ``uri`` is a file or a pipe; one request where ``exists`` may need two.

    Raises:
        StorageError: the storage does not answer.
    """
    if is_remote(uri):
        return size(uri) is not None
    found = _stat(uri)
    return found is not None and not stat.S_ISDIR(found.st_mode)


def is_dir(uri: str) -> bool:
    """Whether ``uri`` is a folder.

    Raises:
        StorageError: the storage does not answer.
    """
    if is_remote(uri):
        return objects.is_folder(uri)
    found = _stat(uri)
    return found is not None and stat.S_ISDIR(found.st_mode)


def size(uri: str) -> int | None:
    """Bytes of a file, None where there is none.

    Raises:
        StorageError: the storage cannot be reached.
    """
    if is_remote(uri):
        entry = objects.entry(uri)
        return None if entry is None else entry.size_bytes
    found = _stat(uri)
    return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None


def read_bytes(uri: str, size_bytes: int | None = None) -> bytes:
    """The content of a file: all of it, or its beginning.

    Raises:
        StorageError: it does not exist or cannot be read.
    """
    if is_remote(uri):
        return objects.read(uri, stop=size_bytes)
    try:
        with Path(absolute(uri)).open("rb") as file:
            return file.read(size_bytes)
    except FileNotFoundError:
        raise StorageError(f"{uri}: no such file. Check the path.") from None
    except OSError as error:
        raise StorageError(f"{uri}: cannot be read: {error}") from None


def read_ahead(uris: Iterable[str], size_bytes: int | None = None) -> Iterator[Callable[[], bytes]]:
    """For each file in turn, a function that gives what ``read_bytes`` does, or raises its errors.

    While the caller works on one file, the next ``READ_AHEAD`` objects are fetched. Local files are
    read when they are asked for.
    """
    pending: deque[Callable[[], bytes]] = deque()
    pool = ThreadPoolExecutor(READ_AHEAD, "read-ahead")
    try:
        for uri in uris:
            read = partial(read_bytes, uri, size_bytes)
            pending.append(pool.submit(read).result if is_remote(uri) else read)
            if len(pending) > READ_AHEAD:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def write_bytes(uri: str, data: bytes, durable: bool = False) -> None:
    """Write a file so that readers see either the old or the new content, never a part.

    Args:
        uri: the file.
        data: its new content.
        durable: wait until it is on the disk, so that it outlasts a power cut.

    Raises:
        StorageError: it cannot be written; nothing is left behind.
    """
    if is_remote(uri):
        objects.write(uri, data)
        return
    with _writing(uri, durable) as file:
        file.write(data)


def upload(file: Path, uri: str) -> None:
    """Copy a local file to ``uri``, as atomically as ``write_bytes``.

    Raises:
        StorageError: it cannot be written; nothing is left behind.
    """
    if is_remote(uri):
        objects.upload(file, uri)
        return
    with file.open("rb") as source, _writing(uri, durable=False) as target:
        shutil.copyfileobj(source, target, _COPY_BYTES)


@contextmanager
def _writing(uri: str, durable: bool) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``uri`` when the block has succeeded."""
    try:
        target = Path(absolute(uri))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(target)
            if durable:
                settle(target.parent, contents=False)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{uri}: cannot be written: {error}") from None


def read_json(uri: str) -> Any:
    """Parse a JSON file.

    Raises:
        StorageError: missing, unreadable or not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{uri}: not valid JSON: {error}") from None


def write_json(uri: str, value: object) -> None:
    """Write ``value`` as indented JSON, atomically; it outlasts a power cut."""
    data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    write_bytes(uri, data, durable=True)


def settle(folder: Path, contents: bool = True) -> None:
    """Wait until a local folder's list of files, and the files, are on the disk.

    Until then a power cut may leave files of which only the names are there. File systems that do
    not offer it, as some behind a network for folders, are taken as they are.
    """
    for place in (*(folder.iterdir() if contents else ()), folder):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)


def entries(uri: str, recursive: bool = True) -> list[Entry]:
    """All files under a folder with size and time of change, sorted by path.

    Raises:
        StorageError: ``uri`` is not a folder that can be listed.
        FileNameError: a name in it is not text.
    """
    if is_remote(uri):
        found = list(objects.entries(uri, recursive))
        if not found and not objects.is_folder(uri):
            raise StorageError(f"{uri}: cannot be listed: no such folder. Check the path.")
        return sorted(found, key=lambda entry: entry.uri)
    try:
        found = list(_walk(absolute(uri), recursive))
    except OSError as error:
        raise StorageError(f"{uri}: cannot be listed: {error}") from None
    try:
        "".join(entry.uri for entry in found).encode()
    except UnicodeEncodeError:
        raise FileNameError(
            f"{uri}: the name of a file in this folder is not valid UTF-8. "
            "Find it with `ls -b` and rename it."
        ) from None
    return sorted(found, key=lambda entry: entry.uri)


def _walk(folder: str, recursive: bool) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for item in found:
            # What others have removed or renamed since it was seen, as all writes here do.
            with suppress(FileNotFoundError):
                if item.is_dir():
                    if recursive:
                        yield from _walk(item.path, recursive)
                elif item.is_file():
                    facts = item.stat()
                    yield Entry(item.path, facts.st_size, facts.st_mtime_ns)


def list_files(uri: str, recursive: bool = True) -> list[str]:
    """All files under a folder, sorted, as paths or URIs like ``uri``.

    Raises:
        StorageError: ``uri`` is not a folder that can be listed.
    """
    return [entry.uri for entry in entries(uri, recursive)]


def sha256(uri: str) -> str:
    """SHA-256 (hex) of a file's content."""
    return hashlib.sha256(read_bytes(uri)).hexdigest()


def remove(uri: str) -> None:
    """Delete a file or a folder with all that is in it; nothing there is no error.

    Raises:
        StorageError: it cannot be deleted.
    """
    if is_remote(uri):
        objects.delete(uri)
        return
    found, path = _stat(uri), Path(absolute(uri))
    try:
        if found is not None and stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        elif found is not None:
            path.unlink()
    except OSError as error:
        raise StorageError(f"{uri}: cannot be deleted: {error}") from None


def _stat(uri: str) -> os.stat_result | None:
    try:
        return Path(absolute(uri)).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{uri}: cannot be reached: {error}") from None
