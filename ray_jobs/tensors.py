"""Tensors of the Open Inference Protocol v2: arrays in JSON, and binary data.

https://github.com/kserve/open-inference-protocol and its binary tensor data extension. What a
request states about sizes is compared with the values at hand, in Python's unbounded integers,
before any array is made.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fetal_core.errors import FetalError

_LENGTH = struct.Struct("<I")
_SHOWN = 80


class ProtocolError(FetalError):
    """A request does not follow the protocol; ``status`` is the HTTP status to answer with."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def raw_pixels(raw: memoryview, shape: list[int]) -> NDArray[np.uint8]:
    """Binary UINT8 data as an array; raises ProtocolError if there is too little or too much."""
    if len(raw) != prod(shape):
        raise ProtocolError(f"Shape {shape} needs {prod(shape)} bytes; got {len(raw)}.")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def pixels(tensor: dict[str, Any], shape: list[int]) -> NDArray[np.uint8]:
    """UINT8 ``data`` of a JSON tensor; raises ProtocolError if it is not what ``shape`` says."""
    values = _flat(tensor.get("data"), shape)
    if not set(map(type, values)) <= {int} or not 0 <= min(values) <= max(values) <= 255:
        raise ProtocolError("data of datatype UINT8 must be integers from 0 to 255.")
    return np.array(values, np.uint8).reshape(shape)


def _flat(data: Any, shape: list[int]) -> list[Any]:
    """Row-major values of a flat array, or of one nested just as ``shape`` says."""
    if isinstance(data, list) and data and isinstance(data[0], list):
        if len(data) != shape[0]:
            raise _unlike(shape)
        for side in shape[1:]:
            if not all(isinstance(row, list) and len(row) == side for row in data):
                raise _unlike(shape)
            data = list(chain.from_iterable(data))
    if not isinstance(data, list) or len(data) != prod(shape):
        raise _unlike(shape)
    return data


def _unlike(shape: list[int]) -> ProtocolError:
    return ProtocolError(
        f"data must be an array of {prod(shape)} values, flat or of shape {shape}."
    )


def base64_elements(tensor: dict[str, Any], count: int) -> tuple[bytes, ...]:
    """BYTES ``data`` of a JSON tensor; raises ProtocolError unless it is ``count`` strings."""
    values = _flat(tensor.get("data"), [count])
    try:
        return tuple(base64.b64decode(value, validate=True) for value in values)
    except (ValueError, TypeError):
        raise ProtocolError(
            "data of input 'bytes' must be strings in base64, as JSON holds no bytes."
        ) from None


def elements(raw: memoryview, count: int) -> Iterator[bytes]:
    """Elements of a binary BYTES tensor, each behind its length in 4 bytes.

    Raises:
        ProtocolError: the data does not end just where element ``count`` does.
    """
    start = 0
    for element in range(count):
        end = start + _LENGTH.size
        if end <= len(raw):
            start, end = end, end + _LENGTH.unpack_from(raw, start)[0]
        if end > len(raw):
            raise ProtocolError(f"The binary data ends within element {element} of {count}.")
        yield bytes(raw[start:end])
        start = end
    if start != len(raw):
        raise ProtocolError(f"{len(raw) - start} bytes follow the last of {count} elements.")


def to_bytes(values: NDArray[np.float32] | list[str]) -> bytes:
    """Binary data of an FP32 or BYTES tensor."""
    if not isinstance(values, list):
        return values.astype("<f4").tobytes()
    encoded = [value.encode("utf-8") for value in values]
    return b"".join(_LENGTH.pack(len(element)) + element for element in encoded)


def shown(value: object) -> str:
    """A caller's value, short enough for a message."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except ValueError:  # an integer of more than 4300 digits
        return "a number too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
