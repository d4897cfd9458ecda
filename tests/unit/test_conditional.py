"""Compare-and-swap of small files: an old state is never written over a newer one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fetal_core import conditional, storage
from fetal_core.conditional import ConflictError
from registry_samples import Crew, count, hold_lock


@pytest.fixture(params=["disk", "S3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a file may lie."""
    if request.param == "disk":
        return str(tmp_path / "state.json")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/state.json"


def test_a_write_upon_an_old_state_is_a_conflict(uri: str) -> None:
    conditional.write(uri, b"1", None)
    first = conditional.read(uri)
    assert first is not None
    with pytest.raises(ConflictError, match=r"state\.json"):
        conditional.write(uri, b"other", None)
    conditional.write(uri, b"2", first)
    with pytest.raises(ConflictError, match=r"state\.json"):
        conditional.write(uri, b"3", first)
    with pytest.raises(ConflictError):
        conditional.update(uri, lambda data: b"x" + changed_meanwhile(uri, data))
    assert conditional.update(uri, lambda data: (data or b"") + b"!").endswith(b"!")


def changed_meanwhile(uri: str, data: bytes | None) -> bytes:
    """Another writer comes first each time."""
    conditional.write(uri, (data or b"") + b"0", conditional.read(uri))
    return data or b""


def test_a_known_state_is_found_unchanged_changed_or_gone(uri: str) -> None:
    conditional.write(uri, b"1", None)
    first = conditional.read(uri)
    assert conditional.read(uri, first) == first
    conditional.write(uri, b"2", first)
    second = conditional.read(uri, first)
    assert second is not None
    assert second.data == b"2"
    storage.remove(uri)
    assert conditional.read(uri, second) is None


def test_a_file_that_is_not_there(uri: str) -> None:
    assert conditional.read(uri) is None
    seen: list[bytes | None] = []

    def first(data: bytes | None) -> bytes:
        seen.append(data)
        return b"first"

    assert conditional.update(uri, first) == b"first"
    assert seen == [None]
    assert storage.read_bytes(uri) == b"first"


def test_counting_processes_count_every_step(tmp_path: Path) -> None:
    file = tmp_path / "count"
    assert Crew(count, str(file), [5] * 4).answers() == [None] * 4
    assert file.read_bytes() == b"20"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".count.lock", "count"]


def test_a_lock_whose_holder_is_killed_is_free(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    conditional.write(str(file), b"1", None)
    lock = tmp_path / ".state.json.lock"
    crew = Crew(hold_lock, str(lock), [None])
    while not Path(f"{lock}.held").exists():
        time.sleep(0.01)
    crew.kill()
    conditional.write(str(file), b"2", conditional.read(str(file)))
    assert file.read_bytes() == b"2"
