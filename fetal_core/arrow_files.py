"""The project's storage as a file system of pyarrow, for Ray and for Parquet files."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from fetal_core import objects, storage


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of ``uri`` and the path inside it; it can be sent to other processes.

    S3 goes through ``fetal_core.s3`` like everything else: the same settings, which each process
    finds on its own machine, the same patience and errors, and no requests beyond those needed.
    """
    if not storage.is_remote(uri):
        return pafs.LocalFileSystem(), storage.absolute(uri)
    return pafs.PyFileSystem(_Objects()), uri.partition("://")[2].rstrip("/")


class _Objects(pafs.FileSystemHandler):  # type: ignore[misc]
    """S3 for pyarrow; folders are prefixes, which need not be made."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Objects)

    def __hash__(self) -> int:
        return hash(_Objects)

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return path.rstrip("/")

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        found = list(objects.entries(_uri(selector.base_dir), selector.recursive))
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        return [_file(entry) for entry in found]

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        objects.delete(_uri(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        objects.delete(_uri(path))

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("a whole bucket is not deleted")

    def delete_file(self, path: str) -> None:
        objects.delete(_uri(path))

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError("objects cannot be moved")

    def copy_file(self, src: str, dest: str) -> None:
        objects.write(_uri(dest), objects.read(_uri(src)))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(objects.read(_uri(path)))

    def open_input_file(self, path: str) -> pa.NativeFile:
        entry = objects.entry(_uri(path))
        if entry is None:
            raise FileNotFoundError(path)
        return pa.PythonFile(_Reader(entry.uri, entry.size_bytes), "r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Writer(_uri(path)), "w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("objects cannot be appended to")

    def _info(self, path: str) -> pafs.FileInfo:
        uri = _uri(path)
        entry = objects.entry(uri)
        if entry is not None:
            return _file(entry)
        kind = pafs.FileType.Directory if objects.is_folder(uri) else pafs.FileType.NotFound
        return pafs.FileInfo(path, kind)


class _Reader(io.RawIOBase):
    """An object that is read in the pieces that are asked for."""

    def __init__(self, uri: str, size_bytes: int) -> None:
        self._uri, self._size_bytes, self._at = uri, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size_bytes}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size_bytes
        if size is not None and size >= 0:
            stop = min(stop, self._at + size)
        if stop <= self._at:
            return b""
        data = objects.read(self._uri, self._at, stop)
        self._at += len(data)
        return data


class _Writer(io.RawIOBase):
    """A local file that becomes an object when it is closed, and nothing if it never is."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._file = tempfile.NamedTemporaryFile(prefix="fetal-upload-")  # noqa: SIM115

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._file.flush()
            objects.upload(Path(self._file.name), self._uri)
        finally:
            self._discard()

    def __del__(self) -> None:
        """The base's would close it, and so upload the beginning that an exception left behind."""
        self._discard()

    def _discard(self) -> None:
        self._file.close()
        super().close()


def _uri(path: str) -> str:
    return f"s3://{path.rstrip('/')}"


def _file(entry: objects.Entry) -> pafs.FileInfo:
    return pafs.FileInfo(
        entry.uri.partition("://")[2],
        pafs.FileType.File,
        size=entry.size_bytes,
        mtime_ns=entry.changed_ns,
    )
