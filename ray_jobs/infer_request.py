"""Requests and answers of the Open Inference Protocol v2, in JSON with binary tensors behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.tensors import (
    ProtocolError,
    base64_elements,
    elements,
    pixels,
    raw_pixels,
    shown,
    to_bytes,
)

MAX_JSON_BYTES = 8 * 1024 * 1024
"""Of the JSON part, whose objects take some thirty times its length; binary tensors have no such
bound but the body's."""

MAX_NAMES, MAX_ARRAYS = 10_000, 100_000
"""Of the JSON part: names and objects, which a request has a few dozen of; arrays, of which pixels
have one a row. Objects by the million would stop the whole process while they are read, as Python's
reader lets no other thread run."""

IMAGE, BYTES = "image", "bytes"
OUTPUTS = {"probabilities": "FP32", "logits": "FP32", "plane": "BYTES"}
_DATATYPES = {IMAGE: "UINT8", BYTES: "BYTES"}


@dataclass(frozen=True)
class Wanted:
    """An output to return, as binary or as JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A request whose sizes have been checked.

    Attributes:
        id: to be returned with the answer, or None.
        images_NHW: uint8, or None where ``files`` holds the input.
        files: encoded image files.
        outputs: in the order in which they are to be returned.
    """

    id: str | None
    images_NHW: NDArray[np.uint8] | None
    files: tuple[bytes, ...]
    outputs: tuple[Wanted, ...]


def parse_request(
    body: bytes, json_bytes: int | None, size_px: int, max_items: int
) -> InferRequest:
    """Read an inference request.

    Args:
        body: of the HTTP request.
        json_bytes: length of the JSON at its beginning, or None where it is all JSON.
        size_px: side of the images that the model takes.
        max_items: images that one request may hold.

    Raises:
        ProtocolError: it does not follow the protocol, or is larger than allowed.
    """
    json_bytes = len(body) if json_bytes is None else json_bytes
    if json_bytes > len(body):
        raise ProtocolError(
            f"Inference-Header-Content-Length is {json_bytes} and the body has {len(body)} bytes."
        )
    request = _read_json(body[:json_bytes])
    name = request.get("id")
    if not isinstance(name, str | None):
        raise ProtocolError("id must be a string.")
    tensor = _only_input(request)
    shape = _shape(tensor, size_px, max_items)
    raw = _binary_part(tensor, memoryview(body)[json_bytes:])
    outputs = _wanted(request)
    if tensor["name"] == BYTES:
        count = shape[0]
        files = base64_elements(tensor, count) if raw is None else tuple(elements(raw, count))
        return InferRequest(name, None, files, outputs)
    images = pixels(tensor, shape) if raw is None else raw_pixels(raw, shape)
    return InferRequest(name, images, (), outputs)


def encode_answer(
    header: Mapping[str, str],
    tensors: Mapping[str, NDArray[np.float32] | list[str]],
    wanted: Sequence[Wanted],
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where binary tensors follow.

    Args:
        header: model name, version and request id.
        tensors: for each output float32 (N, K), or a list of N strings.
        wanted: the outputs to return, in order.
    """
    outputs: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for output in wanted:
        values = tensors[output.name]
        shape = [len(values)] if isinstance(values, list) else list(values.shape)
        described: dict[str, Any] = {
            "name": output.name,
            "datatype": OUTPUTS[output.name],
            "shape": shape,
        }
        if output.binary:
            chunks.append(to_bytes(values))
            described["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            described["data"] = values if isinstance(values, list) else values.ravel().tolist()
        outputs.append(described)
    text = json.dumps({**header, "outputs": outputs}, allow_nan=False).encode("ascii")
    return b"".join([text, *chunks]), len(text) if chunks else None


def _read_json(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_JSON_BYTES:
        raise ProtocolError(
            f"The JSON part has {len(data):,} bytes, more than the limit of {MAX_JSON_BYTES:,}. "
            "Send tensors as binary data.",
            413,
        )
    # Text holds some too, but base64 none.
    most = {b":": MAX_NAMES, b"{": MAX_NAMES, b"[": MAX_ARRAYS}
    if any(data.count(sign) > limit for sign, limit in most.items()):
        raise ProtocolError(
            f"The JSON part has more than {MAX_NAMES:,} names or objects, or more than "
            f"{MAX_ARRAYS:,} arrays. Send tensors as binary data.",
            413,
        )
    try:
        # Decoded here, as json takes bytes for UTF-16 and UTF-32 too and lets surrogates pass.
        request = json.loads(data.decode("utf-8"), parse_constant=_no_such_number)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"The request is not valid JSON: {shown(error)}") from None
    if not isinstance(request, dict):
        raise ProtocolError("The request must be a JSON object.")
    return request


def _no_such_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _only_input(request: dict[str, Any]) -> dict[str, Any]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(found, dict) for found in inputs):
        raise ProtocolError("inputs must be an array of tensors.")
    if len(inputs) != 1:
        raise ProtocolError(f"Give one input, either {IMAGE!r} or {BYTES!r}; got {len(inputs)}.")
    tensor: dict[str, Any] = inputs[0]
    name = tensor.get("name")
    if not isinstance(name, str) or name not in _DATATYPES:
        raise ProtocolError(f"There is no input {shown(name)}; inputs are {IMAGE!r}, {BYTES!r}.")
    if tensor.get("datatype") != _DATATYPES[name]:
        found = shown(tensor.get("datatype"))
        raise ProtocolError(f"Input {name!r}: datatype must be {_DATATYPES[name]}; got {found}.")
    return tensor


def _shape(tensor: dict[str, Any], size_px: int, max_items: int) -> list[int]:
    shape = tensor.get("shape")
    rest = [] if tensor["name"] == BYTES else [size_px, size_px]
    whole = isinstance(shape, list) and all(type(side) is int for side in shape)
    if not isinstance(shape, list) or not whole or shape[1:] != rest or not shape:
        expected = ["N", *rest]
        raise ProtocolError(
            f"Input {tensor['name']!r}: shape must be [{', '.join(map(str, expected))}]; "
            f"got {shown(shape)}."
        )
    if shape[0] < 1:
        raise ProtocolError(f"Input {tensor['name']!r}: there must be one image or more.")
    if shape[0] > max_items:
        raise ProtocolError(
            f"Input {tensor['name']!r}: {shown(shape[0])} images are more than the limit of "
            f"{max_items} a request.",
            413,
        )
    return shape


def _binary_part(tensor: dict[str, Any], rest: memoryview) -> memoryview | None:
    """The bytes behind the JSON, or None for a tensor within it."""
    parameters = _parameters(tensor, "an input")
    if "shared_memory_region" in parameters:
        raise ProtocolError("Shared memory is not supported; send the tensor's data.")
    size = parameters.get("binary_data_size")
    if size is None:
        if rest:
            raise ProtocolError(f"{len(rest)} bytes follow the JSON and no input claims them.")
        return None
    if "data" in tensor:
        raise ProtocolError("An input has both data and binary_data_size.")
    if type(size) is not int or size != len(rest):
        raise ProtocolError(
            f"binary_data_size is {shown(size)} and {len(rest)} bytes follow the JSON. The "
            "header Inference-Header-Content-Length tells where it ends."
        )
    return rest


def _wanted(request: dict[str, Any]) -> tuple[Wanted, ...]:
    binary = _flag(_parameters(request, "the request"), "binary_data_output")
    outputs = request.get("outputs") or [{"name": name} for name in OUTPUTS]
    if not isinstance(outputs, list) or not all(isinstance(found, dict) for found in outputs):
        raise ProtocolError("outputs must be an array of objects.")
    wanted = []
    for output in outputs:
        name = output.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise ProtocolError(f"There is no output {shown(name)}; it has {', '.join(OUTPUTS)}.")
        parameters = _parameters(output, "an output")
        if "classification" in parameters or "shared_memory_region" in parameters:
            raise ProtocolError(
                "The extensions classification and shared memory are not supported."
            )
        wanted.append(Wanted(name, _flag(parameters, "binary_data", binary)))
    if len({output.name for output in wanted}) < len(wanted):
        raise ProtocolError("An output is named twice.")
    return tuple(wanted)


def _parameters(owner: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ProtocolError(f"parameters of {what} must be an object.")
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} must be true or false; got {shown(value)}.")
    return value
