"""Hostile requests, each made from its number alone: the same one in every run."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote_from_bytes

from bombs import bombs
from builders import SIZE_PX
from file_mutations import EXTREMES, MUTATORS, flipped, lying, recoded, shuffled, truncated
from seeds import CANARY, seeds

Random = random.Random
Headers = list[tuple[bytes, bytes]]

PREDICT, EXPLAIN, INFER = "/v1/predict", "/v1/explain", "/v2/models/toy/infer"


@dataclass(frozen=True)
class Hostile:
    """A request as a server would pass it on.

    Attributes:
        kind: of the mutation.
        chunks: of the body, in the order of their arrival.
        ending: what follows them: ``whole``, ``gone`` (the client leaves) or ``stalls``.
    """

    kind: str
    path: str
    chunks: tuple[bytes, ...]
    headers: Headers = field(default_factory=list)
    method: str = "POST"
    query: bytes = b""
    ending: str = "whole"


def hostile(number: int) -> Hostile:
    """The request of a number, of any kind."""
    chance = random.Random(number)
    kind = chance.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    return KINDS[kind][1](kind, chance)


def _seed(chance: Random, of_dicom: bool = False) -> bytes:
    names = [name for name in seeds() if name.startswith("dicom") or not of_dicom]
    return seeds()[chance.choice(names)]


def mutated(chance: Random) -> bytes:
    """A file with one to three mutations of any kind."""
    data = _seed(chance)
    for _ in range(chance.choice((1, 1, 2, 3))):
        data = chance.choice(list(MUTATORS.values()))(data or b"\x00", chance)
    return data


def _delivered(kind: str, data: bytes, chance: Random) -> Hostile:
    """A file by any of the ways that the service takes files."""
    way = chance.choices(("raw", "form", "explain", "json", "binary"), (12, 3, 2, 2, 2))[0]
    if way == "form":
        return _form(kind, [(_FILE, data)], chance)
    if way == "json":
        tensor = {"name": "bytes", "datatype": "BYTES", "shape": [1]}
        tensor["data"] = [base64.b64encode(data).decode()]
        return Hostile(kind, INFER, (json.dumps({"inputs": [tensor]}).encode(),))
    if way == "binary":
        return _binary(kind, struct.pack("<I", len(data)) + data)
    headers = [(b"content-type", b"application/octet-stream")]
    return Hostile(kind, PREDICT if way == "raw" else EXPLAIN, (data,), headers)


_FILE = f'Content-Disposition: form-data; name="file"; filename="{CANARY}.png"'.encode()


def _form(
    kind: str, parts: list[tuple[bytes, bytes]], chance: Random, end: bytes = b"--b--"
) -> Hostile:
    body = b"".join(b"--b\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + end
    step = chance.choice((7, 1000, 10**6)) if len(body) < 20_000 else 10**6
    chunks = tuple(body[at : at + step] for at in range(0, len(body), step))
    return Hostile(kind, PREDICT, chunks, [(b"content-type", b"multipart/form-data; boundary=b")])


def _binary(kind: str, rest: bytes, **changes: object) -> Hostile:
    tensor: dict[str, object] = {"name": "bytes", "datatype": "BYTES", "shape": [1]}
    tensor["parameters"] = {"binary_data_size": len(rest)}
    head = json.dumps({"inputs": [tensor | changes]}).encode()
    headers = [(b"inference-header-content-length", str(len(head)).encode())]
    return Hostile(kind, INFER, (head + rest,), headers)


def _file(change: Callable[[bytes, Random], bytes], of_dicom: bool = False) -> Maker:
    def make(kind: str, chance: Random) -> Hostile:
        return _delivered(kind, change(_seed(chance, of_dicom), chance), chance)

    return make


def _several(kind: str, chance: Random) -> Hostile:
    return _delivered(kind, mutated(chance), chance)


def _bomb(kind: str, chance: Random) -> Hostile:
    data = chance.choice(list(bombs().values()))
    return _delivered(kind, flipped(data, chance) if chance.random() < 0.3 else data, chance)


def _noise(chance: Random, longest: int = 60) -> bytes:
    return chance.randbytes(chance.randrange(longest))


_HEADS = (
    _FILE,
    b"Content-Disposition: form-data; name=files; filename*=utf-8''%ff",
    b'Content-Disposition: form-data; name="',
    b'Content-Disposition: form-data; name="x"',
    b"Content-Disposition",
    b"Content-Transfer-Encoding: base64",
    b": ",
    b"X: " + b"y" * 20_000,
    b"\r\n".join([b"X: y"] * 500),
)
_ENDINGS = (b"--b--\r\n", b"--b--", b"--b", b"", b"--b--\r\nmore", b"\r\n", b"--b\r\n" * 2_000)
_FILLS = (b"\r\n-" * 20_000, b"\r" * 60_000, b"\r\n--" * 20_000, b"--b" * 20_000)


def _multipart(kind: str, chance: Random) -> Hostile:
    parts = []
    for _ in range(chance.choice((0, 1, 1, 2, 4, 8))):
        head = chance.choice(_HEADS) if chance.random() < 0.2 else _FILE
        data = chance.choice(_FILLS) if chance.random() < 0.05 else mutated(chance)
        parts.append((flipped(head, chance) if chance.random() < 0.1 else head, data))
    ending = chance.choice(_ENDINGS) if chance.random() < 0.4 else b"--b--"
    made = _form(kind, parts, chance, ending)
    if chance.random() < 0.3 and made.chunks:
        first = flipped(made.chunks[0], chance)
        made = Hostile(kind, PREDICT, (first, *made.chunks[1:]), made.headers)
    return made


_NAMES = (
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"transfer-encoding",
    b"x-request-id",
    b"authorization",
    b"x-api-key",
    b"host",
    b"expect",
    b"origin",
    b"x-forwarded-for",
    b"inference-header-content-length",
    b"accept",
    b"range",
    b"cookie",
    b"upgrade",
)
_VALUES = (
    b"",
    b"0",
    b"-1",
    b"99999999999999999999999",
    "²".encode(),
    b"gzip, deflate, br",
    b"identity",
    b"chunked",
    b"multipart/form-data; boundary=" + b"b" * 10_000,
    b'multipart/form-data; boundary="',
    b"multipart/form-data; boundary=\xff\xfe",
    b"multipart/form-data; boundary=b; boundary=c",
    b"multipart/form-data; boundary*=utf-8''%ff%00",
    b"multipart/mixed; boundary=b",
    b"image/png\r\nx-injected: 1",
    b"text/html",
    b"application/json",
    b"Bearer " + b"k" * 5_000,
    f"{CANARY}\n[ERROR] forged line".encode(),
    b"a" * 50_000,
    b"\x00\x01\x7f\xff",
)


def _headers(kind: str, chance: Random) -> Hostile:
    headers = [
        (chance.choice(_NAMES), chance.choice(_VALUES) if chance.random() < 0.8 else _noise(chance))
        for _ in range(chance.choice((1, 2, 3, 6, 30)))
    ]
    path = chance.choice((PREDICT, PREDICT, EXPLAIN, INFER, "/v1/model", "/metrics", "/"))
    return Hostile(kind, path, (_seed(chance),), headers)


def _address(kind: str, chance: Random) -> Hostile:
    method = chance.choice(("GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "DELETE", "x" * 99))
    text = _noise(chance).decode("utf-8", "surrogateescape")
    path = chance.choice(
        (
            f"/{text}",
            f"/static/{text}",
            "/static/../http_api.py",
            "/static/..%2f..%2fpyproject.toml",
            "/static//etc/passwd",
            f"/v2/models/{text}/infer",
            f"/v2/models/toy/versions/{text}/ready",
            "/v1/predict/",
            "//v1/predict",
            "/v1/stream",
            "/openapi.json",
            "/docs",
        )
    )
    return Hostile(kind, path, (_noise(chance),), [], method, _noise(chance))


_FIELDS = (b"class", b"frame", b"frame", b"x", b"frame[]", b"class" * 500)
_ASKED = (
    b"0",
    b"1",
    b"-1",
    b"9" * 5_000,
    b"1e3",
    b"brain",
    b"Brain",
    b"",
    b"\xff",
    b"null",
    b"0x0",
)


def _question(kind: str, chance: Random) -> Hostile:
    pairs = []
    for _ in range(chance.choice((1, 2, 2, 5))):
        value = chance.choice(_ASKED) if chance.random() < 0.7 else _noise(chance)
        pairs.append(chance.choice(_FIELDS) + b"=" + quote_from_bytes(value).encode())
    query = b"&".join(pairs) if chance.random() < 0.8 else _noise(chance)
    types = [(b"content-type", chance.choice((b"image/png", b"text/plain", b"application/json")))]
    return Hostile(kind, EXPLAIN, (_seed(chance),), types, query=query)


_JUNK: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    10**30,
    "",
    "x",
    [],
    {},
    [[]],
    [None],
    [-1],
    [2**40, SIZE_PX, SIZE_PX],
    [1, SIZE_PX, SIZE_PX],
    "\ud800",
    "image",
    "bytes",
    "UINT8",
    "BYTES",
    {"binary_data_size": 10**12},
    {"binary_data_size": -1},
    {"shared_memory_region": CANARY},
)


def _infer_json(kind: str, chance: Random) -> Hostile:
    tensor: dict[str, object] = {"name": "image", "datatype": "UINT8"}
    tensor |= {"shape": [1, SIZE_PX, SIZE_PX], "data": [0] * SIZE_PX**2}
    request: dict[str, object] = {"inputs": [tensor], "id": "a", "outputs": [{"name": "logits"}]}
    for _ in range(chance.choice((1, 1, 2, 3))):
        owner = chance.choice((tensor, tensor, request))
        field_ = chance.choice((*owner, "parameters"))
        owner[field_] = chance.choice(_JUNK)
    body = json.dumps(request).encode()
    if chance.random() < 0.2:
        body = chance.choice(_DEEP)
    elif chance.random() < 0.3:
        body = chance.choice((flipped, truncated, shuffled))(body, chance)
    length = [(b"inference-header-content-length", chance.choice((b"0", b"10", b"-5", b"9" * 30)))]
    return Hostile(kind, INFER, (body,), length if chance.random() < 0.2 else [])


_DEEP = (
    b'{"inputs":' + b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"inputs": [{"name": "image", "shape": [' + b"9" * 100_000 + b"]}]}",
    b'{"inputs": NaN}',
    b"\xff\xfe{\x00}\x00",
    b"\x00" * 1000,
)


def _infer_binary(kind: str, chance: Random) -> Hostile:
    if chance.random() < 0.5:
        lengths = chance.choice(EXTREMES)
        rest = struct.pack("<I", lengths % 2**32) + mutated(chance)
        return _binary(kind, rest, shape=[chance.choice((0, 1, 2, 10**9, -1))])
    size = SIZE_PX**2 + chance.choice((-1, 0, 0, 1))
    changes = {chance.choice(("shape", "datatype", "parameters", "data")): chance.choice(_JUNK)}
    image = {"name": "image", "datatype": "UINT8", "shape": [1, SIZE_PX, SIZE_PX]}
    return _binary(kind, chance.randbytes(size), **(image | changes))


def _slow(kind: str, chance: Random) -> Hostile:
    """Half a body from a client that leaves, or that sends no more."""
    data = _seed(chance)
    ending = "stalls" if chance.random() < 0.05 else "gone"
    path = chance.choice((PREDICT, EXPLAIN, INFER))
    return Hostile(kind, path, (data[: len(data) // 2],), ending=ending)


Maker = Callable[[str, Random], Hostile]

KINDS: dict[str, tuple[int, Maker]] = {
    **{name: (9, _file(change)) for name, change in MUTATORS.items()},
    "several": (10, _several),
    "dicom lies": (10, _file(lying, of_dicom=True)),
    "dicom syntax": (4, _file(recoded, of_dicom=True)),
    "bomb": (1, _bomb),
    "multipart": (6, _multipart),
    "headers": (8, _headers),
    "address": (5, _address),
    "question": (3, _question),
    "infer json": (5, _infer_json),
    "infer binary": (3, _infer_binary),
    "slow": (1, _slow),
}
"""Weight and maker of each kind of request."""
