"""The registry under several processes at once, killed ones, and lost answers."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from fetal_core import storage
from fetal_core.api_keys import KeyStore
from fetal_core.errors import StorageError
from fetal_core.registry import Registry
from fetal_core.registry_records import AliasState, RegistryError
from registry_samples import (
    NAME,
    TIMEOUT_S,
    Crew,
    filled,
    promote,
    register,
    register_on_a_small_disk,
    roll_back,
    write_bundle,
)
from s3_servers import Environ, Server, is_write, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=["disk", "S3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "registry")
    return f"{request.getfixturevalue('server').uri}/{uuid.uuid4().hex}"


def replayed(state: AliasState) -> list[int]:
    """The versions that a history leaves, the present one last, by playing it from the start."""
    stack: list[int] = []
    for move in state.history:
        if move.kind == "promote":
            stack.append(move.version)
        else:
            stack.pop()
            assert stack[-1] == move.version
    return stack


def test_of_promoters_at_the_same_moment_none_is_lost(place: str, tmp_path: Path) -> None:
    registry = filled(place, tmp_path, versions=6)
    registry.promote(NAME, 6, "champion")
    orders = [[1, 2], [3, 4], [5, 1], [2, 3]]
    crew = Crew(promote, place, orders)
    while crew.is_working():
        state = registry.alias_state(NAME, "champion")
        assert replayed(state) == [*state.previous, state.version]
        time.sleep(0.01)
    assert crew.answers() == [None] * len(orders)
    state = registry.alias_state(NAME, "champion")
    assert replayed(state) == [*state.previous, state.version]
    moved = [move.version for move in state.history]
    for order in orders:
        # A promotion to where the alias points already is no move: then its version comes just so.
        assert set(order) <= set(moved)
    assert all(a != b for a, b in pairwise(moved))
    assert len({move.id for move in state.history}) == len(moved)


def test_rollbacks_at_the_same_moment_go_back_one_each_or_conflict(
    place: str, tmp_path: Path
) -> None:
    registry = filled(place, tmp_path, versions=3)
    for version in (1, 2, 3, 1, 2, 3, 1, 2, 3):
        registry.promote(NAME, version, "champion")
    before = registry.alias_state(NAME, "champion")
    answers = Crew(roll_back, place, [None] * 5).answers()
    done = [answer for answer in answers if answer != "ConflictError"]
    assert done
    after = registry.alias_state(NAME, "champion")
    assert len(after.history) == len(before.history) + len(done)
    assert sorted(move.version for move in after.history[9:]) == sorted(done)
    assert replayed(after) == [*after.previous, after.version]
    assert [*after.previous, after.version] == [*before.previous, 3][: -len(done)]


def test_registrations_at_the_same_moment_get_a_number_for_each_content(
    place: str, tmp_path: Path
) -> None:
    bundles = [write_bundle(str(tmp_path / word), word.encode()) for word in ("a", "b", "c")]
    numbers = Crew(register, place, bundles + bundles).answers()
    assert numbers[:3] == numbers[3:]
    assert sorted(numbers[:3]) == [1, 2, 3]
    registry = Registry(place)
    for bundle, number in zip(bundles, numbers, strict=False):
        registry.verify(NAME, number)
        weights = storage.join(registry.resolve(NAME, number)[1], "weights.safetensors")
        assert storage.read_bytes(weights) == Path(bundle).name.encode()
    assert [info.number for info in registry.versions(NAME)] == [1, 2, 3]


def killed_while_it_copies(place: str, bundle: str, copying: threading.Event) -> None:
    """Register in a process that is killed (SIGKILL) once ``copying`` is set."""
    crew = Crew(register, place, [bundle])
    assert copying.wait(TIMEOUT_S)
    crew.kill()


def check_that_nothing_is_visible_and_the_next_one_completes(place: str, bundle: str) -> None:
    registry = Registry(place)
    assert storage.exists(storage.join(registry.bundle_uri(NAME, 1), "claim.json"))
    assert registry.models() == []
    for call in (registry.versions, lambda name: registry.resolve(name, 1)):
        with pytest.raises(RegistryError, match="no model"):
            call(NAME)
    other = write_bundle(f"{bundle}-other", b"other")
    assert registry.register(other, NAME) == 2
    assert [info.number for info in registry.versions(NAME)] == [2]
    assert registry.register(bundle, NAME) == 1
    for number in (1, 2):
        assert registry.verify(NAME, number).number == number


def test_a_registration_killed_in_the_middle_is_invisible_on_disk(tmp_path: Path) -> None:
    place, bundle = str(tmp_path / "registry"), write_bundle(str(tmp_path / "bundle"))
    folder = Path(Registry(place).bundle_uri(NAME, 1))
    folder.mkdir(parents=True)
    # Comparing the weights waits for whoever writes to this pipe, which nobody does.
    os.mkfifo(folder / "weights.safetensors")
    copying = threading.Event()

    def watch() -> None:
        while not (folder / "model.json").exists():
            time.sleep(0.01)
        copying.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    killed_while_it_copies(place, bundle, copying)
    (folder / "weights.safetensors").unlink()
    check_that_nothing_is_visible_and_the_next_one_completes(place, bundle)


def test_a_registration_killed_in_the_middle_is_invisible_in_s3(tmp_path: Path) -> None:
    copying, killed = threading.Event(), threading.Event()

    def hold(environ: Environ) -> None:
        if is_write(environ, "weights.safetensors"):
            copying.set()
            killed.wait(TIMEOUT_S)

    with s3_server() as server:
        server.before = hold
        place, bundle = f"{server.uri}/registry", write_bundle(str(tmp_path / "bundle"))
        killed_while_it_copies(place, bundle, copying)
        assert Registry(place).models() == []
        server.before = lambda environ: None
        killed.set()
        check_that_nothing_is_visible_and_the_next_one_completes(place, bundle)


def test_a_disk_that_is_full_leaves_nothing_visible(tmp_path: Path) -> None:
    place = str(tmp_path / "registry")
    bundle = write_bundle(str(tmp_path / "bundle"), weights=bytes(1 << 20))
    assert Crew(register_on_a_small_disk, place, [bundle]).answers() == ["StorageError"]
    check_that_nothing_is_visible_and_the_next_one_completes(place, bundle)


@contextmanager
def first_answer_lost(server: Server, name: str) -> Iterator[None]:
    """The server fails once after it has written an object of this file name."""
    lost = []

    def lose(environ: Environ) -> None:
        if is_write(environ, name) and not lost:
            lost.append(environ["PATH_INFO"])
            raise RuntimeError("the answer is lost")

    server.after = lose
    try:
        yield
    finally:
        server.after = lambda environ: None
    assert len(lost) == 1


def test_a_write_whose_answer_was_lost_counts_once(server: Server, tmp_path: Path) -> None:
    place = f"{server.uri}/lost"
    registry, keys = filled(place, tmp_path, versions=2), KeyStore(f"{place}/keys.json")
    registry.promote(NAME, 1, "champion")
    with first_answer_lost(server, "champion.json"):
        registry.promote(NAME, 2, "champion")
    with first_answer_lost(server, "champion.json"):
        state = registry.rollback(NAME, "champion")
    assert [move.version for move in state.history] == [1, 2, 1]
    assert registry.alias_state(NAME, "champion") == state
    for label in ("first", "second"):
        with first_answer_lost(server, "keys.json"):
            keys.create(label)
    assert [key.label for key in keys.list()] == ["first", "second"]
    with first_answer_lost(server, "claim.json"):
        assert registry.register(write_bundle(str(tmp_path / "third"), b"third"), NAME) == 3
    assert [info.number for info in registry.versions(NAME)] == [1, 2, 3]


def test_a_store_that_ignores_conditions_is_refused(tmp_path: Path) -> None:
    with s3_server() as server:
        server.before = lambda environ: environ.pop("HTTP_IF_NONE_MATCH", None)
        bundle = write_bundle(str(tmp_path / "bundle"))
        with pytest.raises(StorageError, match="overwrites in spite of If-None-Match"):
            Registry(f"{server.uri}/registry").register(bundle, NAME)
