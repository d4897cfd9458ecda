"""Reading image files once, for their hashes and sizes, in as many processes as wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
from PIL import Image

from fetal_core import images, storage
from fetal_core.errors import ImageError, StorageError, StoreAwayError
from fetal_core.files import ImageFile
from fetal_core.image_limits import ImageLimits, check_bytes
from fetal_core.machine import cores

THUMB_HW = (16, 18)
"""Height and width of the thumbnails by which near-duplicates are compared."""

_SMALL_SET = 256
_CHUNK = 32


@dataclass(frozen=True)
class FramePrint:
    """What identifies a frame's pixels.

    Attributes:
        pixel_hash: SHA-256 (hex) of the shape and the grey pixels.
        dhash: 64-bit difference hash, one bit for each pair of neighbours in 8 rows of 9 means.
        thumb: grey uint8 thumbnail of ``THUMB_HW``, row by row.
    """

    pixel_hash: str
    dhash: int
    thumb: bytes
    width_px: int
    height_px: int


@dataclass(frozen=True)
class FilePrint:
    """A file's hash and frames, or the reason why it is not an image."""

    path: str
    file_bytes: int
    sha256: str = ""
    mode: str = ""
    frames: tuple[FramePrint, ...] = ()
    error: tuple[str, str, str] | None = None


def fingerprint_files(
    root: str, files: Sequence[ImageFile], limits: ImageLimits, workers: int | None = None
) -> Iterator[FilePrint]:
    """Read every file; results come in the order of ``files``.

    Small sets are read by threads, as processes take a second to start. A file that cannot be read
    gives a :class:`FilePrint` with ``error``. ``workers`` is all cores of this process by default.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a reading process was killed.
        StoreAwayError: the images' store has ceased to answer.
    """
    read = partial(_fingerprint_chunk, root, limits=limits)
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    workers = workers or cores()
    if workers == 1:
        yield from chain.from_iterable(map(read, chunks))
        return
    pool: Executor
    if len(files) <= _SMALL_SET:
        pool = ThreadPoolExecutor(workers)
    else:
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from chain.from_iterable(pool.map(read, chunks))
    finally:
        pool.shutdown(cancel_futures=True)


def _fingerprint_chunk(
    root: str, files: Sequence[ImageFile], limits: ImageLimits
) -> list[FilePrint]:
    """Read and decode some files; nothing that their bytes cause is raised."""
    fitting = [file for file in files if 0 < file.size_bytes <= limits.max_bytes]
    contents = storage.read_ahead(storage.join(root, file.path) for file in fitting)
    return [
        _fingerprint_file(file, next(contents) if file in fitting else None, limits)
        for file in files
    ]


def _fingerprint_file(
    file: ImageFile, content: Callable[[], bytes] | None, limits: ImageLimits
) -> FilePrint:
    try:
        check_bytes(file.size_bytes, limits)
        data = content() if content is not None else b""
        info = images.probe(data, limits)
        frames = tuple(fingerprint_frame(grey) for grey in images.decode_frames(data, limits))
    except ImageError as error:
        fault = (error.kind, error.reason, error.remedy)
        return FilePrint(file.path, file.size_bytes, error=fault)
    except StoreAwayError:
        raise
    except StorageError as error:
        fault = ("unreadable-file", str(error), "Check the file and its permissions")
        return FilePrint(file.path, file.size_bytes, error=fault)
    return FilePrint(file.path, len(data), hashlib.sha256(data).hexdigest(), info.mode, frames)


def fingerprint_frame(grey: npt.NDArray[np.uint8]) -> FramePrint:
    """Hashes of one grey uint8 image ``(height, width)``."""
    height_px, width_px = grey.shape
    pixels = hashlib.sha256(f"{height_px}x{width_px}:".encode())
    pixels.update(np.ascontiguousarray(grey).data)
    size = (THUMB_HW[1], THUMB_HW[0])
    thumb_HW = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))
    sums_HW = thumb_HW.reshape(8, 2, 9, 2).sum(axis=(1, 3), dtype=np.int32)
    bits = np.packbits(sums_HW[:, 1:] > sums_HW[:, :-1])
    return FramePrint(
        pixels.hexdigest(),
        int.from_bytes(bits.tobytes(), "big"),
        thumb_HW.tobytes(),
        width_px,
        height_px,
    )
