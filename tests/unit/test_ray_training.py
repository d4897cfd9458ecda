"""What training workers are started with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ray_jobs.ray_training import _Stepping, allocator_settings

# As a step does, in a thread as Ray runs it: the same 200 MB again and again.
_STEPS = """
import ctypes, resource, threading

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def steps():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(libc.malloc(200_000_000))
        ctypes.memset(block, 1, 200_000_000)
        libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


def test_a_loss_that_is_found_again_and_again_is_told_once() -> None:
    told: list[str] = []
    stepping = _Stepping(lambda event: told.append(event["kind"]))
    for kind in ("start", "lost", "lost", "lost", "start", "step", "lost"):
        stepping({"kind": kind})
    assert told == ["start", "lost", "start", "step", "lost"]


def page_faults(settings: dict[str, str]) -> int:
    """Of the last of three steps."""
    env = os.environ | settings
    done = subprocess.run([sys.executable, "-c", _STEPS], env=env, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_a_step_uses_the_memory_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    # Pages are of 2 MB at most.
    assert page_faults(allocator_settings()) < 20 < 90 < page_faults({})


def test_settings_of_the_user_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert allocator_settings() == {}
