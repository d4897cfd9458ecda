"""Several machines at once: what differs between them, and what they do not answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.cluster_checks import check_exposure, check_storage
from ray_jobs.command import stage
from ray_jobs.examination import examine
from ray_jobs.findings import Finding
from ray_jobs.machine_facts import read_facts
from ray_jobs.node_probe import LocalProbe, Node, Probe, SilentProbe, SkewedProbe
from ray_jobs.storage_probe import StorageFacts
from s3_servers import Server, s3_server

OWN = read_facts([])
KIB = 1024


@pytest.fixture
def store() -> Iterator[Server]:
    with s3_server() as server:
        yield server


def examined(tmp_path: Path, **probes: Probe) -> dict[tuple[str, str], Finding]:
    """Findings about machines with these probes, by check and name."""
    nodes = [Node(name, probe, "127.0.0.1") for name, probe in probes.items()]
    findings = examine(nodes, OWN, str(tmp_path / "runs"), KIB)
    return {(finding.check, finding.node): finding for finding in findings}


def test_machines_that_are_alike(tmp_path: Path) -> None:
    found = examined(tmp_path, a=LocalProbe(), b=LocalProbe())
    assert found["same-versions", "cluster"].seen == "2 nodes have equal versions"
    for node in ("a", "b"):
        for check in ("clock", "ports"):
            assert found[check, node].severity == "ok"
        assert "written, read, listed, swapped, deleted" in found["storage", node].seen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ahead_s", "severity", "words"),
    [(0.5, "ok", "0.5 s ahead"), (-30, "warn", "30.0 s behind"), (400, "fail", "400.0 s ahead")],
)
def test_a_wrong_clock(tmp_path: Path, ahead_s: float, severity: str, words: str) -> None:
    found = examined(tmp_path, a=LocalProbe(), b=SkewedProbe(ahead_s))
    assert found["clock", "b"].severity == severity
    assert words in found["clock", "b"].seen
    assert found["clock", "a"].severity == "ok"


@pytest.mark.parametrize(
    ("there", "fails"),
    [("1.2.3", True), ("", True), (OWN.versions["torch"].partition("+")[0] + "+cu1", False)],
)
def test_other_versions(tmp_path: Path, there: str, fails: bool) -> None:
    found = examined(tmp_path, a=LocalProbe(), b=SkewedProbe(versions={"torch": there}))
    assert (("same-versions", "b") in found) == fails
    if fails:
        assert f"torch {there or 'missing'} (here " in found["same-versions", "b"].seen
        assert found["versions", "b"].severity == "fail"
    assert ("same-versions", "a") not in found


def test_a_machine_that_does_not_answer_is_named_and_the_others_are_checked(
    tmp_path: Path,
) -> None:
    found = examined(tmp_path, a=LocalProbe(), b=SilentProbe())
    assert found["answer", "b"].severity == "fail"
    assert "no answer" in found["answer", "b"].seen
    assert found["storage", "a"].severity != "fail"
    assert not [key for key in found if key[1] == "b" and key[0] != "answer"]


def test_a_closed_port_of_another_machine_is_named(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    nodes = [
        Node("a", LocalProbe(), "127.0.0.1", (("raylet", port),)),
        Node("b", LocalProbe(), "127.0.0.1"),
    ]
    findings = examine(nodes, OWN, str(tmp_path / "runs"), KIB)
    (ports,) = [one for one in findings if (one.check, one.node) == ("ports", "b")]
    assert ports.severity == "fail"
    assert f"raylet of a (127.0.0.1:{port}): Connection refused" in ports.seen


@pytest.mark.parametrize(
    ("listening", "address", "mode", "severity"),
    [
        ((("127.0.0.1", 8265), ("::1", 8265)), "10.0.0.4", "disabled", "ok"),
        ((("0.0.0.0", 6379),), "10.0.0.4", "disabled", "ok"),
        ((("0.0.0.0", 8265),), "10.0.0.4", "disabled", "fail"),
        ((("10.0.0.4", 8265),), "10.0.0.4", "token", "warn"),
        ((("::", 8265),), "", "disabled", "warn"),
    ],
)
def test_control_ports_beyond_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    listening: tuple[tuple[str, int], ...],
    address: str,
    mode: str,
    severity: str,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    facts = replace(OWN, listening=listening)
    (found,) = check_exposure("a", facts, {8265: "dashboard"}, address)
    assert found.severity == severity
    if severity != "ok":
        assert f"dashboard on {listening[0][0]}:8265" in found.seen
        assert "--dashboard-host=127.0.0.1" in found.remedy


def test_a_public_address_is_exposed() -> None:
    (found,) = check_exposure("a", replace(OWN, listening=()), {}, "8.8.8.8")
    assert "public address 8.8.8.8" in found.seen


@pytest.mark.parametrize(
    ("facts", "severities"),
    [
        (StorageFacts("", 50e6, 50e6, True, 0.4), ["ok", "ok"]),
        (StorageFacts("", 9e6, 50e6), ["warn"]),
        (StorageFacts("", 50e6, 50e6, False), ["fail"]),
        (StorageFacts("list: denied", ahead_s=-100), ["warn", "fail"]),
        (StorageFacts("list: RequestTimeTooSkewed", ahead_s=1000), ["fail", "fail"]),
    ],
)
def test_what_a_storage_allows(facts: StorageFacts, severities: list[str]) -> None:
    assert [found.severity for found in check_storage("a", "s3://b/runs", facts)] == severities


def test_the_command_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    stage("doctor", ["--json", "--probe-mib", "1"])
    found = json.loads(capsys.readouterr().out)
    assert {"versions", "free-disk", "free-memory", "limits", "storage", "exposure"} <= {
        finding["check"] for finding in found["findings"]
    }
    assert sum(found["counts"].values()) == len(found["findings"])
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_refuses_writes_fails_the_command(
    store: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    store.denied = lambda environ: environ["REQUEST_METHOD"] == "PUT"
    assert stage("doctor", ["--storage", f"{store.uri}/runs"]) == 1
    said = capsys.readouterr().out
    assert "storage: Check the address, the credentials" in said
    assert "1 fail" in said


def test_wrong_flags_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage("doctor", ["--probe-mib", "0"]) == 2
    assert "probe_mib" in capsys.readouterr().err
