"""What a machine can do in a storage, tried for real; nothing of the trial remains."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from builders import disk_refuses_files_over
from fetal_core import storage
from ray_jobs.storage_probe import StorageFacts, leave_mark, trial_folder, try_storage
from s3_servers import Environ, Server, s3_server

KIB = 1024


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as found:
        yield found


@pytest.fixture
def store(server: Server) -> Server:
    """The server with a new bucket, and all rights."""
    server.uri = f"s3://trials-{uuid.uuid4().hex}"
    server.denied, server.before = lambda environ: False, lambda environ: None
    boto3.session.Session().client("s3").create_bucket(Bucket=storage.name(server.uri))
    return server


def tried(uri: str, size_bytes: int = 64 * KIB) -> StorageFacts:
    with trial_folder(uri, ".trial") as folder:
        return try_storage(folder, "0", size_bytes, False)


def left(server: Server) -> list[str]:
    """All keys and versions that a bucket holds."""
    found = (
        boto3.session.Session().client("s3").list_object_versions(Bucket=storage.name(server.uri))
    )
    return [item["Key"] for part in ("Versions", "DeleteMarkers") for item in found.get(part, [])]


def test_a_folder_that_is_not_there_yet_is_not_there_afterwards(tmp_path: Path) -> None:
    found = tried(str(tmp_path / "new" / "runs"))
    assert found.fault == ""
    assert found.write_bytes_s > 0
    assert found.read_bytes_s > 0
    assert (found.shared, found.ahead_s) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text("{}")
    assert tried(str(tmp_path)).fault == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model.json", "run"]


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be" in tried(str(tmp_path / "file" / "runs")).fault
    assert (tmp_path / "file").read_text() == "x"


def test_a_disk_without_room_is_a_fault_and_leaves_nothing(tmp_path: Path) -> None:
    with disk_refuses_files_over(1000):
        assert "cannot be written" in tried(str(tmp_path / "runs")).fault
    assert list(tmp_path.iterdir()) == []


def test_the_mark_of_another_machine_is_seen_where_the_storage_is_shared(tmp_path: Path) -> None:
    with trial_folder(str(tmp_path / "shared"), ".trial") as folder:
        leave_mark(folder)
        assert try_storage(folder, "1", KIB, True).shared is True
        assert try_storage(str(tmp_path / "own" / ".trial"), "1", KIB, True).shared is False
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_with_all_rights(store: Server) -> None:
    found = tried(f"{store.uri}/runs")
    assert found.fault == ""
    assert found.ahead_s == pytest.approx(0, abs=2)
    assert left(store) == []


def test_a_bucket_that_keeps_versions_keeps_none_of_the_trial(store: Server) -> None:
    client = boto3.session.Session().client("s3")
    bucket = storage.name(store.uri)
    enabled = {"Status": "Enabled"}
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=enabled)
    client.put_object(Bucket=bucket, Key="runs/mine", Body=b"x")
    assert tried(f"{store.uri}/runs").fault == ""
    assert left(store) == ["runs/mine"]


@pytest.mark.parametrize(
    ("methods", "fault"),
    [(("PUT", "POST"), "cannot be written"), (("GET",), "list: "), (("DELETE",), "delete: ")],
)
def test_a_missing_right_is_named(store: Server, methods: tuple[str, ...], fault: str) -> None:
    store.denied = lambda environ: environ["REQUEST_METHOD"] in methods
    assert fault in tried(f"{store.uri}/runs").fault
    store.denied = lambda environ: False
    assert bool(left(store)) == (methods == ("DELETE",))


@pytest.mark.parametrize("header", ["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
def test_a_store_without_conditional_writes_is_a_fault(store: Server, header: str) -> None:
    def forget(environ: Environ) -> None:
        environ.pop(header, None)

    store.before = forget
    fault = tried(f"{store.uri}/runs").fault
    assert f"in spite of {header.removeprefix('HTTP_').title().replace('_', '-')}" in fault
    assert left(store) == []


def test_a_bucket_that_is_not_there_or_a_store_that_is_off(
    store: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "NoSuchBucket" in tried("s3://nowhere/runs").fault
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "connect" in tried(f"{store.uri}/runs").fault


def test_the_clock_is_compared_with_that_of_the_store(store: Server) -> None:
    store.denied = lambda environ: True
    assert tried(f"{store.uri}/runs").ahead_s == pytest.approx(0, abs=2)
