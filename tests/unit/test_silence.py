"""A thread is silenced for itself, and for nobody else."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from data_samples import encode, texture
from fetal_core.images import ImageLimits, decode, decode_frames
from fetal_core.silence import silenced
from serving_samples import cine, tiff

PATIENCE_S = 20
SLOW = "slow"


def elsewhere(work: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(PATIENCE_S)


def test_other_threads_are_heard() -> None:
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        with silenced():
            warnings.warn("mine", stacklevel=1)
            elsewhere(lambda: warnings.warn("theirs", stacklevel=1))
            with silenced():
                warnings.warn("mine too", UserWarning, stacklevel=1)
            warnings.warn("and mine", DeprecationWarning, stacklevel=1)
        warnings.warn("later", stacklevel=1)
    assert [str(record.message) for record in records] == ["theirs", "later"]


def test_blocks_of_several_threads_may_end_in_any_order() -> None:
    before = [each for each in warnings.filters if each[0] != "ignore"]
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as other:
        warnings.simplefilter("error")
        first, second = silenced(), silenced()
        first.__enter__()
        other.submit(second.__enter__).result(PATIENCE_S)
        first.__exit__(None, None, None)
        with pytest.raises(UserWarning, match="heard"):
            warnings.warn("heard", stacklevel=1)
        other.submit(warnings.warn, "not heard").result(PATIENCE_S)
        other.submit(second.__exit__, None, None, None).result(PATIENCE_S)
        with pytest.raises(UserWarning, match="heard again"):
            other.submit(warnings.warn, "heard again").result(PATIENCE_S)
    assert [each for each in warnings.filters if each[0] != "ignore"] == before


class Stepped(ImageLimits):
    """Limits that hold a thread at each look at them, wherever it is in a decoder by then."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("max_") and threading.current_thread().name == SLOW:
            held.release()
            assert go_on.acquire(timeout=3 * PATIENCE_S)
        return super().__getattribute__(name)


held, go_on = threading.Semaphore(0), threading.Semaphore(0)


@pytest.mark.parametrize("data", [tiff(2), cine(2)], ids=["tiff", "dicom"])
def test_a_slow_file_stops_no_other(data: bytes) -> None:
    decoded: list[int] = []
    limits = Stepped()
    slow = threading.Thread(
        target=lambda: decoded.append(len(list(decode_frames(data, limits)))), name=SLOW
    )
    slow.start()
    steps = 0
    with ThreadPoolExecutor(1) as others:
        try:
            while not decoded and slow.is_alive():
                if held.acquire(timeout=0.05):
                    for other in (tiff(2), cine(2), encode(texture(0))):
                        assert others.submit(decode, other).result(PATIENCE_S).any()
                    steps += 1
                    go_on.release()
        finally:
            go_on.release(1000)
            slow.join()
            while go_on.acquire(blocking=False) or held.acquire(blocking=False):
                pass
    assert decoded == [2]
    assert steps > 2


def test_files_that_are_decoded_at_the_same_time_are_decoded_as_alone_and_silently() -> None:
    # The first two make pydicom warn.
    names = ["MR_small_padded.dcm", "SC_rgb_jpeg.dcm", "examples_jpeg2k.dcm", "MR_small_RLE.dcm"]
    paths = [get_testdata_file(name, download=False) for name in names]
    contents = [Path(str(path)).read_bytes() for path in paths] + [tiff(3), cine(3)]
    alone = [list(decode_frames(data)) for data in contents]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda data: list(decode_frames(data)), contents * 5))
    for frames, expected in zip(found, alone * 5, strict=True):
        for frame_HW, expected_HW in zip(frames, expected, strict=True):
            np.testing.assert_array_equal(frame_HW, expected_HW)
