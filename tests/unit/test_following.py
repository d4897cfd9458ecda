"""Replicas follow an alias, and a version that cannot be used takes nothing down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fetal_core.errors import ModelError
from fetal_core.registry import Registry
from ray_jobs.following import Follower, Found
from registry_samples import NAME, filled
from s3_servers import s3_server

# What loading a version raises: the project's own error, and one of an engine.
FAULTS = [ModelError("damaged"), RuntimeError("Check 'false' failed at core.cpp")]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two versions, of which the first serves."""
    found = filled(str(tmp_path / "registry"), tmp_path / "bundles", versions=2)
    found.promote(NAME, 1, "champion")
    return found


class Loading:
    """Loads any version but some; a stand-in for a served model is its number."""

    def __init__(
        self,
        registry: Registry,
        *broken: int,
        fault: Exception = FAULTS[0],
        model: str = f"{NAME}@champion",
    ) -> None:
        self.broken, self.fault = set(broken), fault
        self.used: list[int | None] = []
        self.live: list[int | None] = []
        self.meanwhile: Callable[[], object] = lambda: None
        load: Any = self.load
        use: Any = lambda served: self.live.append(served.number)  # noqa: E731
        self.follower = Follower(model, registry.uri, load, use)

    def load(self, found: Found) -> Found:
        self.used.append(found.number)
        self.meanwhile()
        if found.number in self.broken:
            raise self.fault
        return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_version_that_cannot_be_used_is_passed_over_and_not_tried_at_every_look(
    registry: Registry, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    loading = Loading(registry, 2, fault=fault)
    assert loading.follower.first().version == "1"
    registry.promote(NAME, 2, "champion")
    for _ in range(3):
        asyncio.run(loading.follower.look())
    assert loading.used == [1, 2]
    assert str(fault) in caplog.text
    registry.promote(NAME, 1, "champion")
    asyncio.run(loading.follower.look())
    assert loading.used == [1, 2], "it has served all the time"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_replica_that_begins_then_serves_what_was_promoted_before(
    registry: Registry, fault: Exception
) -> None:
    registry.promote(NAME, 2, "champion")
    loading = Loading(registry, 2, fault=fault)
    assert loading.follower.first().version == "1"
    loading.broken.clear()
    asyncio.run(loading.follower.look())
    assert loading.used == [2, 1], "the refused version waits its time"


def test_where_no_version_can_be_used_the_promoted_one_says_why(registry: Registry) -> None:
    registry.promote(NAME, 2, "champion")
    loading = Loading(registry, 1, 2)
    with pytest.raises(ModelError, match="damaged"):
        loading.follower.first()
    assert loading.used == [2, 1]


@pytest.mark.parametrize("model", [NAME, f"{NAME}@champion"])
def test_a_look_at_an_alias_that_stands_still_is_one_small_request(
    tmp_path: Path, model: str
) -> None:
    with s3_server() as server:
        registry = filled(server.uri, tmp_path, versions=2)
        registry.promote(NAME, 1, "champion")
        loading = Loading(registry, model=model)
        assert loading.follower.first().version == "1"
        asyncio.run(loading.follower.look())
        requests: list[tuple[str, str]] = []
        server.before = lambda environ: requests.append(
            (environ["REQUEST_METHOD"], environ.get("HTTP_IF_NONE_MATCH", ""))
        )
        for _ in range(3):
            asyncio.run(loading.follower.look())
        assert [method for method, _ in requests] == ["GET"] * 3
        assert all(etag for _, etag in requests)
        registry.promote(NAME, 2, "champion")
        asyncio.run(loading.follower.look())
    assert loading.used == [1, 2]


def test_a_number_of_a_version_is_not_looked_up_again(tmp_path: Path) -> None:
    with s3_server() as server:
        loading = Loading(filled(server.uri, tmp_path, versions=1), model=f"{NAME}@1")
        assert loading.follower.first().version == "1"
        requests: list[str] = []
        server.before = lambda environ: requests.append(environ["REQUEST_METHOD"])
        asyncio.run(loading.follower.look())
    assert (loading.used, requests) == ([1], [])


def test_an_alias_that_is_gone_is_told_and_found_again(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    loading = Loading(registry)
    loading.follower.first()
    file = Path(registry.uri) / "models" / NAME / "aliases" / "champion.json"
    for _ in range(2):
        asyncio.run(loading.follower.look())
    kept = file.rename(file.with_name("kept"))
    asyncio.run(loading.follower.look())
    assert "no alias 'champion'" in caplog.text
    kept.rename(file)
    registry.promote(NAME, 2, "champion")
    asyncio.run(loading.follower.look())
    assert loading.used == [1, 2]


def test_a_version_that_is_rolled_back_while_it_is_loaded_never_serves(registry: Registry) -> None:
    loading = Loading(registry)
    loading.follower.first()
    registry.promote(NAME, 2, "champion")
    loading.meanwhile = lambda: registry.rollback(NAME, "champion")
    asyncio.run(loading.follower.look())
    assert (loading.used, loading.live) == ([1, 2], [])
    loading.meanwhile = lambda: None
    asyncio.run(loading.follower.look())
    assert (loading.used, loading.live) == ([1, 2], []), "the first version has served all the time"
    registry.promote(NAME, 2, "champion")
    asyncio.run(loading.follower.look())
    assert (loading.used, loading.live) == ([1, 2, 2], [2])


def test_a_version_that_is_loaded_while_the_registry_goes_away_waits_for_it(
    registry: Registry,
) -> None:
    loading = Loading(registry)
    loading.follower.first()
    registry.promote(NAME, 2, "champion")
    folder = Path(registry.uri)
    loading.meanwhile = lambda: folder.rename(folder.with_name("away"))
    asyncio.run(loading.follower.look())
    assert loading.live == []
    loading.meanwhile = lambda: None
    folder.with_name("away").rename(folder)
    asyncio.run(loading.follower.look())
    assert loading.live == [2]


def test_a_registry_that_is_away_is_told_once_and_what_was_refused_stays_so(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    loading = Loading(registry, 2)
    loading.follower.first()
    registry.promote(NAME, 2, "champion")
    asyncio.run(loading.follower.look())
    caplog.clear()
    folder = Path(registry.uri)
    for _ in range(2):
        away = folder.rename(folder.with_name("away"))
        for _ in range(3):
            asyncio.run(loading.follower.look())
        away.rename(folder)
        asyncio.run(loading.follower.look())
    assert loading.used == [1, 2], "the refused version waits its time"
    assert len(caplog.records) == 2, "once each time that it goes away"
