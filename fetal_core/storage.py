"""Files on a local disk or in S3, behind one set of functions; writes are atomic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from fetal_core.errors import StorageError

_COPY_BYTES = 2**23


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


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of ``uri`` and the path inside it.

    Keys are taken as they are written: no character of them is an escape or a separator.

    Raises:
        StorageError: the scheme is not supported, or the bucket cannot be found.
    """
    if not is_remote(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    scheme, _, path = uri.partition("://")
    if scheme != "s3":
        raise StorageError(f"{uri}: no storage is known for {scheme}://. Use a path or s3://.")
    try:
        return _bucket(path.partition("/")[0]), path
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot open this location: {error}") from None


@lru_cache
def _bucket(bucket: str) -> pafs.S3FileSystem:
    """The store of a bucket, as AWS's environment variables describe it."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return pafs.S3FileSystem(region=pafs.resolve_s3_region(bucket))
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    scheme, _, host = endpoint.rpartition("://")
    return pafs.S3FileSystem(endpoint_override=host, scheme=scheme or "https", region=region)


def exists(uri: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        StorageError: the storage does not answer.
    """
    return bool(_kind(uri) != pafs.FileType.NotFound)


def is_dir(uri: str) -> bool:
    """Whether ``uri`` is a folder.

    Raises:
        StorageError: the storage does not answer.
    """
    return bool(_kind(uri) == pafs.FileType.Directory)


def read_bytes(uri: str, size_bytes: int | None = None) -> bytes:
    """The content of a file: all of it, or its beginning.

    Raises:
        StorageError: it does not exist or cannot be read.
    """
    try:
        if not is_remote(uri):
            with Path(absolute(uri)).open("rb") as file:
                return file.read(size_bytes)
        fs, path = filesystem(uri)
        with fs.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read(size_bytes))
    except FileNotFoundError:
        raise StorageError(f"{uri}: no such file. Check the path.") from None
    except OSError as error:
        raise StorageError(f"{uri}: cannot be read: {error}") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that readers see either the old or the new content, never a part.

    Raises:
        StorageError: it cannot be written; nothing is left behind.
    """
    with _writing(uri) as file:
        file.write(data)


def upload(file: Path, uri: str) -> None:
    """Copy a local file to ``uri``, as atomically as ``write_bytes``.

    Raises:
        StorageError: it cannot be written; nothing is left behind.
    """
    with file.open("rb") as source, _writing(uri) as target:
        shutil.copyfileobj(source, target, _COPY_BYTES)


@contextmanager
def _writing(uri: str) -> Iterator[Any]:
    """A binary file that takes the place of ``uri`` when the block has succeeded."""
    try:
        if is_remote(uri):
            # An object appears only once its upload has been completed.
            fs, path = filesystem(uri)
            with fs.open_output_stream(path, compression=None) as stream:
                yield stream
            return
        target = Path(absolute(uri))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(target)
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
    """Write ``value`` as indented JSON, atomically."""
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def list_files(uri: str, recursive: bool = True) -> Iterator[str]:
    """All files under a folder, sorted, as paths or URIs like ``uri``.

    Raises:
        StorageError: ``uri`` is not a folder that can be listed.
    """
    fs, path = filesystem(uri)
    try:
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=recursive))
        infos.sort(key=lambda info: info.path)
    except UnicodeDecodeError:
        raise StorageError(
            f"{uri}: the name of a file in this folder is not valid UTF-8. "
            "Find it with `ls -b` and rename it."
        ) from None
    except OSError as error:
        raise StorageError(f"{uri}: cannot be listed: {error}") from None
    scheme = uri.split("://", 1)[0] + "://" if is_remote(uri) else ""
    for info in infos:
        if info.type == pafs.FileType.File:
            yield scheme + info.path


def sha256(uri: str) -> str:
    """SHA-256 (hex) of a file's content."""
    return hashlib.sha256(read_bytes(uri)).hexdigest()


def remove(uri: str) -> None:
    """Delete a file or a folder with all that is in it; nothing there is no error.

    Raises:
        StorageError: it cannot be deleted.
    """
    fs, path = filesystem(uri)
    kind = _kind(uri)
    try:
        if kind == pafs.FileType.Directory:
            fs.delete_dir(path)
        elif kind == pafs.FileType.File:
            fs.delete_file(path)
    except OSError as error:
        raise StorageError(f"{uri}: cannot be deleted: {error}") from None


def _kind(uri: str) -> pafs.FileType:
    fs, path = filesystem(uri)
    try:
        return fs.get_file_info(path).type
    except OSError as error:
        raise StorageError(f"{uri}: cannot be reached: {error}") from None


def size(uri: str) -> int | None:
    """Bytes of a file, None where there is none.

    Raises:
        StorageError: the storage cannot be reached.
    """
    fs, path = filesystem(uri)
    try:
        found = fs.get_file_info(path)
    except OSError as error:
        raise StorageError(f"{uri}: cannot be looked at: {error}") from None
    return int(found.size) if found.type == pafs.FileType.File else None
