"""Replicas follow an alias, and a version that cannot be used takes nothing down."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fetal_core.errors import ModelError
from fetal_core.registry import Registry
from ray_jobs.following import Follower, Found
from registry_samples import NAME, filled

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

    def __init__(self, registry: Registry, *broken: int, fault: Exception = FAULTS[0]) -> None:
        self.broken, self.fault = set(broken), fault
        self.used: list[int | None] = []
        load: Any = self.load
        self.follower = Follower(f"{NAME}@champion", registry.uri, load, lambda _: None)

    def load(self, found: Found) -> Found:
        self.used.append(found.number)
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
