"""Objects in S3: read, write, list, delete. An object is replaced as a whole or not at all."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from fetal_core import s3
from fetal_core.errors import StorageError

PART_BYTES = 16 << 20
"""Larger contents are sent in parts of this size, several at a time."""

_PARTS_AT_ONCE = 4
_AT_ONCE = 16
_UPLOADS = 3
_HEAD_ANSWERS = s3.MISSING | {"400", "403"}
_EMPTY_RANGE = {"InvalidRange", "416"}


@dataclass(frozen=True)
class Entry:
    """A file in a listing.

    Attributes:
        uri: its path or URI.
        changed_ns: time of the last change, in nanoseconds since 1970.
    """

    uri: str
    size_bytes: int
    changed_ns: int


def read(uri: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of an object from ``start`` to before ``stop``.

    Raises:
        StorageError: there is none, or it cannot be read.
    """
    where: dict[str, str] = s3.place(uri)
    if start or stop is not None:
        where["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))

    def get(client: Any) -> bytes:
        # `read` fails where the connection ends before the announced length.
        return bytes(client.get_object(**where)["Body"].read())

    try:
        return s3.call(uri, "read", get, answers=s3.MISSING | _EMPTY_RANGE)
    except ClientError as error:
        if s3.code(error) in _EMPTY_RANGE:
            return b""
        raise StorageError(f"{uri}: no such file. Check the path.") from None


def write(uri: str, data: bytes) -> None:
    """Replace an object.

    Raises:
        StorageError: it cannot be written; readers still see what was there before.
    """
    view = memoryview(data)
    _send(uri, len(data), lambda start, stop: view[start:stop].tobytes())


def upload(file: Path, uri: str) -> None:
    """Replace an object by the content of a local file.

    Raises:
        StorageError: it cannot be written; readers still see what was there before.
    """
    with file.open("rb") as source:
        number = source.fileno()
        size = os.fstat(number).st_size
        _send(uri, size, lambda start, stop: os.pread(number, stop - start, start))


def entry(uri: str) -> Entry | None:
    """What a listing would say of one object, None where there is none.

    Raises:
        StorageError: the store cannot be reached.
    """
    where = s3.place(uri)
    if not where["Key"]:
        return None
    try:
        found = s3.call(
            uri, "reached", lambda client: client.head_object(**where), answers=_HEAD_ANSWERS
        )
    except ClientError as error:
        if s3.code(error) in s3.MISSING:
            return None
        # The answer to HEAD has no text; that to a listing tells what is wrong.
        is_folder(uri)
        raise StorageError(f"{uri}: cannot be read: {s3.reason(error)}.") from None
    return Entry(uri, int(found["ContentLength"]), _nanoseconds(found["LastModified"]))


def is_folder(uri: str) -> bool:
    """Whether keys begin with this prefix and a slash, or this is a bucket.

    Raises:
        StorageError: the store cannot be reached.
    """
    where = s3.place(uri)
    prefix = _prefix(where["Key"])
    answer = s3.call(
        uri,
        "reached",
        lambda client: client.list_objects_v2(Bucket=where["Bucket"], Prefix=prefix, MaxKeys=1),
    )
    return not prefix or answer["KeyCount"] > 0


def entries(uri: str, recursive: bool = True) -> Iterator[Entry]:
    """The objects below a prefix in the order of their keys; a request for each thousand.

    Objects that stand for folders, whose key ends in a slash, are left out.

    Raises:
        StorageError: it cannot be listed.
    """
    where = s3.place(uri)
    options = {"Bucket": where["Bucket"], "Prefix": _prefix(where["Key"])}
    if not recursive:
        options["Delimiter"] = "/"
    while True:
        answer = s3.call(uri, "listed", lambda client: client.list_objects_v2(**options))
        for item in answer.get("Contents", ()):
            if not item["Key"].endswith("/"):
                uri_of = f"s3://{where['Bucket']}/{item['Key']}"
                yield Entry(uri_of, int(item["Size"]), _nanoseconds(item["LastModified"]))
        if not answer.get("IsTruncated"):
            return
        options["ContinuationToken"] = answer["NextContinuationToken"]


def delete(uri: str) -> None:
    """Delete an object and all below it as a prefix; nothing there is no error.

    Raises:
        StorageError: something cannot be deleted.
    """
    where = s3.place(uri)
    if not where["Key"].strip("/"):
        raise StorageError(f"{uri}: a whole bucket is not deleted. Name a prefix in it.")
    _delete_one(uri, where)
    # One by one: not every store takes a list.
    below = [s3.place(found.uri) for found in entries(uri)]
    if below:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda key: _delete_one(uri, key), below))
        _delete_one(uri, {**where, "Key": _prefix(where["Key"])})


def _delete_one(uri: str, key: dict[str, str]) -> None:
    s3.call(uri, "deleted", lambda client: client.delete_object(**key))


def link(uri: str, expires_s: int) -> str:
    """An address at which anybody can read an object for so long, without credentials.

    Raises:
        StorageError: no credentials to sign it with.
    """
    where = s3.place(uri)
    return s3.call(
        uri,
        "linked to",
        lambda client: str(
            client.generate_presigned_url("get_object", Params=where, ExpiresIn=expires_s)
        ),
    )


def _send(uri: str, size: int, content: Callable[[int, int], bytes]) -> None:
    where = s3.place(uri)
    if not where["Key"]:
        raise StorageError(f"{uri}: names no object. Write s3://BUCKET/KEY.")
    kind = mimetypes.guess_type(where["Key"])[0] or "application/octet-stream"
    if size <= PART_BYTES:
        data = content(0, size)
        s3.call(
            uri,
            "written",
            lambda client: client.put_object(**where, Body=data, ContentType=kind),
        )
        return
    for attempt in range(1, _UPLOADS + 1):
        try:
            _send_parts(uri, where, kind, size, content)
            return
        except ClientError:
            # The store was restarted and has forgotten the upload, or its last answer was lost.
            if attempt == _UPLOADS:
                raise StorageError(
                    f"{uri}: cannot be written: the store forgets uploads before they are whole. "
                    "Run the same command again when it is stable."
                ) from None


def _send_parts(
    uri: str, where: dict[str, str], kind: str, size: int, content: Callable[[int, int], bytes]
) -> None:
    """Send an object in parts, which become visible together at the end."""
    begun = s3.call(
        uri, "written", lambda client: client.create_multipart_upload(**where, ContentType=kind)
    )
    upload = {**where, "UploadId": begun["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        start = (number - 1) * PART_BYTES
        data = content(start, min(start + PART_BYTES, size))
        answer = s3.call(
            uri,
            "written",
            lambda client: client.upload_part(**upload, PartNumber=number, Body=data),
            answers={"NoSuchUpload"},
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    numbers = range(1, -(-size // PART_BYTES) + 1)
    try:
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            parts = list(pool.map(send, numbers))
        s3.call(
            uri,
            "written",
            lambda client: client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}
            ),
            answers={"NoSuchUpload"},
        )
    except BaseException:
        with suppress(StorageError, ClientError):
            s3.call(
                uri,
                "written",
                lambda client: client.abort_multipart_upload(**upload),
                answers={"NoSuchUpload"},
                within_s=0,
            )
        raise


def _prefix(key: str) -> str:
    return key.rstrip("/") + "/" if key.strip("/") else ""


def _nanoseconds(moment: Any) -> int:
    return int(moment.timestamp() * 1_000_000_000)
