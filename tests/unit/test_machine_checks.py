"""Judgements of facts, each at its borders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ray_jobs.findings import Finding
from ray_jobs.machine_checks import Share, check_machine
from ray_jobs.machine_facts import Facts, Gpus, Space, read_facts

GIB = 2**30
GOOD = Facts(
    versions=read_facts([]).versions,
    disks={"/runs": Space(100 * GIB, 200 * GIB)},
    memory=Space(16 * GIB, 32 * GIB),
    shm=Space(16 * GIB, 16 * GIB),
    limits={"open files": 1_000_000, "processes": -1, "file size": -1, "address space": -1},
    cores=8,
    quota_cores=None,
    listening=(),
    gpus=Gpus(),
)
CARD = Gpus("550.54.15", 1, "12.6", ("A10",))


SHARE = Share(store_bytes=8 * GIB, cpus=8, gpus=1)


def judged(share: Share | None = SHARE, **changes: Any) -> list[Finding]:
    """What is not ok of a machine that is good but for some facts."""
    findings = check_machine("node-1", replace(GOOD, **changes), share)
    assert all(finding.node == "node-1" and finding.seen for finding in findings)
    assert all(bool(finding.remedy) == (finding.severity != "ok") for finding in findings)
    return [finding for finding in findings if finding.severity != "ok"]


def test_nothing_is_wrong_with_a_good_machine() -> None:
    assert judged() == []
    assert judged(share=None) == []
    assert judged(gpus=CARD) == []
    assert judged(memory=None, shm=None, limits={}) == []


@pytest.mark.parametrize(
    ("changes", "check", "severity", "words"),
    [
        ({"versions": GOOD.versions | {"ray": ""}}, "versions", "fail", "ray is missing"),
        ({"versions": GOOD.versions | {"ray": "2.9.0"}}, "versions", "fail", "ray 2.9.0"),
        ({"disks": {"/r": Space(9 * GIB, 20 * GIB)}}, "free-disk", "warn", "9.0 GiB free"),
        ({"disks": {"/r": Space(99 * GIB, 1000 * GIB)}}, "free-disk", "warn", "99.0 GiB free"),
        ({"disks": {"/r": Space(49 * GIB, 1000 * GIB)}}, "free-disk", "fail", "95 %"),
        ({"disks": {"/r": Space(GIB - 1, 2 * GIB)}}, "free-disk", "fail", "1024 MiB free"),
        ({"memory": Space(3 * GIB, 16 * GIB)}, "free-memory", "warn", "3.0 GiB free"),
        ({"memory": Space(GIB // 2, 16 * GIB)}, "free-memory", "fail", "512 MiB free"),
        ({"shm": Space(64 * 2**20, 64 * 2**20)}, "shared-memory", "fail", "/dev/shm has 64 MiB"),
        ({"share": None, "shm": Space(GIB, GIB)}, "shared-memory", "warn", "would like"),
        ({"limits": {"open files": 4095}}, "limits", "fail", "open files 4,095"),
        ({"limits": {"open files": 65535}}, "limits", "warn", "open files 65,535"),
        ({"limits": {"processes": 1000}}, "limits", "warn", "processes 1,000"),
        ({"limits": {"file size": 10**9}}, "limits", "fail", "file size 1,000,000,000"),
        ({"quota_cores": 2.5}, "cores", "warn", "8 cores, quota 2.5"),
        ({"quota_cores": 2.5, "share": replace(SHARE, cpus=2)}, "cores", "warn", "quota 2.5"),
        ({"share": replace(SHARE, cpus=64)}, "cores", "warn", "Ray counts 64"),
        ({"gpus": replace(CARD, built="", working=())}, "gpu", "fail", "without CUDA"),
        ({"gpus": replace(CARD, error="no kernel")}, "gpu", "fail", "no kernel"),
        ({"gpus": replace(CARD, working=())}, "gpu", "fail", "can use none"),
        ({"gpus": CARD, "share": replace(SHARE, gpus=0)}, "gpu", "warn", "Ray counts 0"),
        ({"gpus": replace(CARD, visible=2)}, "gpu", "warn", "torch sees 1"),
    ],
)
def test_what_is_wrong_is_named(
    changes: dict[str, Any], check: str, severity: str, words: str
) -> None:
    findings = judged(**changes)
    assert [(finding.check, finding.severity) for finding in findings] == [(check, severity)]
    assert words in findings[0].seen


def test_the_remedy_gives_the_numbers_to_set() -> None:
    (shm,) = judged(shm=Space(GIB, GIB))
    assert "8.4 GiB or more" in shm.remedy
    (cores,) = judged(share=replace(SHARE, cpus=64))
    assert "--num-cpus=8" in cores.remedy
    (quota,) = judged(quota_cores=2.5)
    assert "--num-cpus=2" in quota.remedy


def test_a_cuda_build_of_a_version_meets_what_is_asked_for() -> None:
    versions = GOOD.versions | {"torch": GOOD.versions["torch"].partition("+")[0] + "+cu126"}
    assert judged(versions=versions) == []
