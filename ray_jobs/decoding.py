"""What the decoding threads of the service do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from fetal_core.errors import ConfigError
from fetal_core.explain import grad_cam, overlay_png
from fetal_core.images import ImageLimits, decode, probe
from fetal_core.preprocess import preprocess
from fetal_core.quality import unusable_reason
from ray_jobs.served import ServedModel
from ray_jobs.serving_errors import RequestError

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Chunk:
    """Some consecutive frames of a file.

    Attributes:
        images: preprocessed.
        rejections: for each frame why it shows nothing, or None.
        last: whether no frame follows.
        decode_s: time that decoding and preprocessing took.
    """

    images: list[Grey]
    rejections: list[str | None]
    last: bool
    decode_s: float


def prepare(images: Iterator[Grey], model: ServedModel, size: int) -> Iterator[Chunk]:
    """Chunks of up to ``size`` frames for a model, from decoded grey images."""
    started_s = time.perf_counter()
    ahead = next(images, None)
    while ahead is not None:
        ready, rejections = [], []
        for image_HW in chain([ahead], islice(images, size - 1)):
            ready.append(preprocess(image_HW, model.info.preprocess))
            rejections.append(unusable_reason(image_HW))
        ahead = next(images, None)
        yield Chunk(ready, rejections, ahead is None, time.perf_counter() - started_s)
        started_s = time.perf_counter()


def overlay(
    data: bytes, limits: ImageLimits, model: ServedModel, class_index: int | None, frame: int
) -> bytes:
    """One frame under the heat map of a class (the most probable one if None), as PNG.

    Raises:
        ImageError: not an image that this project reads, or beyond the limits.
        RequestError: no such frame, or the model cannot be explained.
        NotReadyError: the model's files have changed since it was loaded.
    """
    frames = probe(data, limits).frames
    if not 0 <= frame < frames:
        raise RequestError(f"There is no frame {frame}: the file has {frames}, counted from 0.")
    image_HW = decode(data, limits, frame)
    try:
        heat_HW = grad_cam(model.bundle.model, image_HW, model.info.preprocess, class_index)
    except ConfigError as error:
        raise RequestError(str(error)) from None
    return overlay_png(image_HW, heat_HW)
