"""Preparation by two hosts, one of which may be lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clusters import Cluster, wait_until
from cohort import SETTINGS, flags, recipe, shards_of
from fetal_core.config import merge
from fetal_core.recipe import Recipe

pytestmark = [pytest.mark.cluster, pytest.mark.heavy]


def by_machine(output: str) -> dict[str, int]:
    """Images that each address has prepared, as the command tells."""
    (line,) = re.findall("by machine: (.*)", output)
    return {address: int(images) for address, images in map(str.split, line.split(", "))}


def expect_shards(
    cluster: Cluster, prefix: str, cohort: Path, settings: Recipe, folder: Path
) -> None:
    """The shards in the store are those that one process makes, byte for byte."""
    found = cluster.store.fetch(f"{prefix}/shards", folder / "found")
    expected = folder / "expected"
    shards_of(cohort, settings, expected).save(str(expected))
    files = sorted(file.relative_to(expected) for file in expected.rglob("*") if file.is_file())
    assert sorted(f.relative_to(found) for f in found.rglob("*") if f.is_file()) == files
    for file in files:
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file


def test_both_hosts_make_shards_and_they_are_those_of_one_process(
    cluster: Cluster, preparation: str, cohort: Path, tmp_path: Path
) -> None:
    images = by_machine(preparation)
    assert set(images) == {host.address for host in cluster.network.hosts[:2]}
    assert min(images.values()) > 0
    assert sum(images.values()) == 200
    expect_shards(cluster, "prepared", cohort, recipe(), tmp_path)


def test_a_host_that_is_lost_costs_no_image(
    cluster: Cluster, data: str, cohort: Path, tmp_path: Path
) -> None:
    head, worker = cluster.size(2)
    # Large pictures make many files and much work.
    large = {"preprocess": {"size_px": 800}}
    command = ("python", "-m", "ray_jobs.prepare", data, "--out", "s3://cohort/large")
    with head.running(*command, *flags(merge(SETTINGS, large))) as process:
        wait_until(
            lambda: (
                bool(cluster.store.keys("large/shards/"))
                and any(line.startswith("ray::Map") for line in worker.processes())
            ),
            process,
        )
        worker.kill()
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "prepared s3://cohort/large" in output
    expect_shards(cluster, "large", cohort, recipe(**large), tmp_path)
