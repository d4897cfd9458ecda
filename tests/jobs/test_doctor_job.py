"""`fetal doctor` on a real cluster of two nodes, of which one has another version of a package."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ray._private.services import get_node_ip_address
from ray.cluster_utils import Cluster

from cohorts import run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of `first` and `second`; `second` has an old pyarrow installed."""
    old = tmp_path_factory.mktemp("site")
    (old / "pyarrow-1.2.3.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: pyarrow\nVersion: 1.2.3\n"
    (old / "pyarrow-1.2.3.dist-info" / "METADATA").write_text(metadata)
    path = os.pathsep.join([str(old), *filter(None, [os.environ.get("PYTHONPATH")])])
    cluster = Cluster()
    try:
        cluster.add_node(node_name="first", object_store_memory=100 * 2**20)
        cluster.add_node(
            node_name="second", object_store_memory=100 * 2**20, env_vars={"PYTHONPATH": path}
        )
        yield cluster
    finally:
        cluster.shutdown()


def found(output: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Findings of ``--json`` by check and node."""
    findings: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for finding in json.loads(output)["findings"]:
        findings.setdefault((finding["check"], finding["node"]), []).append(finding)
    return findings


def test_every_node_is_looked_at_and_the_one_that_differs_is_named(
    two_nodes: Cluster, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    words = ("--address", two_nodes.address, "--storage", str(runs), "--probe-mib", "1", "--json")
    code, output = run("doctor", *words, cwd=tmp_path)
    assert code == 1, output
    findings = found(output)
    for check in (
        "free-disk",
        "free-memory",
        "shared-memory",
        "cores",
        "clock",
        "storage",
        "ports",
    ):
        for node in ("first", "second"):
            assert (check, node) in findings, output
    (differing,) = findings["same-versions", "second"]
    assert differing["severity"] == "fail"
    assert "pyarrow 1.2.3 (here " in differing["seen"]
    assert ("same-versions", "first") not in findings
    for node in ("first", "second"):
        assert findings["storage", node][0]["severity"] != "fail", output
        assert findings["ports", node][0]["severity"] == "ok", output
        assert findings["clock", node][0]["severity"] == "ok", output
    assert not runs.exists()
    assert not any(key[0] == "answer" for key in findings)


def test_a_node_that_has_died_is_named(two_nodes: Cluster, tmp_path: Path) -> None:
    (second,) = two_nodes.worker_nodes
    two_nodes.remove_node(second)
    words = ("--address", two_nodes.address, "--probe-mib", "1", "--json")
    _, output = run("doctor", *words, cwd=tmp_path)
    (dead,) = found(output)["dead-node", "cluster"]
    assert dead["seen"].startswith("second: ")
    assert ("clock", "first") in found(output)
    assert ("clock", "second") not in found(output)


def refusal(port: int, folder: Path) -> str:
    """What is said of a port where there is no cluster."""
    code, output = run("doctor", "--address", f"127.0.0.1:{port}", cwd=folder)
    assert code == 2, output
    assert "no Ray cluster answers there" in output
    assert "Traceback" not in output
    return output


def test_a_port_where_nothing_listens_is_told(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    assert "Connection refused" in refusal(port, tmp_path)


def test_a_service_that_is_not_ray_is_told(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert "does not speak gRPC" in refusal(server.server_port, tmp_path)
        finally:
            server.shutdown()
            thread.join()


def test_a_head_node_that_listens_on_loopback_alone_is_told(tmp_path: Path) -> None:
    """Ray goes to the network card's address instead, and would try that for minutes."""
    if get_node_ip_address() == "127.0.0.1":
        pytest.skip("this machine has no other address")

    def answer() -> None:
        with listener.accept()[0] as connection:
            connection.recv(1024)
            connection.sendall(b"\0\0\0\4\0\0\0\0\0")  # an empty SETTINGS frame, as gRPC begins

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        output = refusal(listener.getsockname()[1], tmp_path)
    assert f"Ray looks for it at {get_node_ip_address()}" in output
    assert "Connection refused" in output


def test_a_head_node_that_hangs_is_told(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as hanging:
        assert "timed out" in refusal(hanging.getsockname()[1], tmp_path)
