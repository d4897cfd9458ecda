"""Files behind one set of functions: atomic writes, listing, errors of the project's own kind."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import boto3
import moto.backends
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.core import DEFAULT_ACCOUNT_ID

from builders import disk_refuses_files_over
from fetal_core import storage
from fetal_core.errors import StorageError

SEGMENT = st.text("abcXYZ019_-.", min_size=1, max_size=8).filter(lambda s: s.strip("."))


@given(st.binary(max_size=300))
def test_bytes_round_trip_and_hash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    uri = storage.join(str(tmp_path_factory.mktemp("x")), "new", "folder", "file.bin")
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert storage.sha256(uri) == hashlib.sha256(data).hexdigest()


def test_json_round_trip_keeps_umlauts_readable(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.json")
    storage.write_json(uri, {"Ebene": "Schädel", "n": [1, None]})
    assert storage.read_json(uri) == {"Ebene": "Schädel", "n": [1, None]}
    assert "Schädel" in Path(uri).read_text()


def test_the_beginning_of_a_file(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"0123456789")
    assert storage.read_bytes(str(tmp_path / "a"), 4) == b"0123"
    assert storage.read_bytes(str(tmp_path / "a"), 40) == b"0123456789"


def test_failing_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    storage.write_bytes(str(file), b"old")
    with disk_refuses_files_over(1 << 20), pytest.raises(StorageError, match=r"model\.bin"):
        storage.write_bytes(str(file), bytes(2 << 20))
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_write_over_a_folder_fails_and_leaves_it(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "inside").write_text("kept")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_bytes(str(folder), b"data")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inside", "taken"]


def test_write_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_bytes(str(tmp_path / "file" / "child"), b"data")


def test_a_folder_is_listed_while_files_in_it_come_and_go(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    storage.write_bytes(kept, b"x")
    done = threading.Event()

    def change(folder: str) -> None:
        while not done.is_set():
            storage.write_bytes(f"{folder}/written", b"x")
            storage.remove(folder)

    folders = [str(tmp_path / name) for name in "ab"]
    writers = [threading.Thread(target=change, args=(folder,)) for folder in folders]
    for writer in writers:
        writer.start()
    try:
        for _ in range(2000):
            assert kept in storage.list_files(str(tmp_path))
    finally:
        done.set()
        for writer in writers:
            writer.join()


def test_list_is_sorted_recursive_and_of_files_only(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.txt"):
        storage.write_bytes(str(tmp_path / name), b"")
    (tmp_path / "empty").mkdir()
    found = [str(Path(path).relative_to(tmp_path)) for path in storage.list_files(str(tmp_path))]
    assert found == ["a/b/c.txt", "a/z.txt", "b.txt"]
    flat = list(storage.list_files(str(tmp_path), recursive=False))
    assert flat == [str(tmp_path / "b.txt")]


def test_remove_takes_files_and_folders_and_does_not_mind_nothing(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "folder" / "file"), b"")
    storage.write_bytes(str(tmp_path / "single"), b"")
    for name in ("folder", "single", "nothing"):
        storage.remove(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_exists_and_is_dir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert storage.exists(str(tmp_path))
    assert storage.is_dir(str(tmp_path))
    assert storage.exists(str(tmp_path / "file"))
    assert not storage.is_dir(str(tmp_path / "file"))
    assert not storage.exists(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "read",
    [
        storage.read_bytes,
        storage.read_json,
        storage.sha256,
        lambda uri: list(storage.list_files(uri)),
    ],
)
def test_reading_what_is_not_there_is_a_storage_error(
    tmp_path: Path, read: Callable[[str], object]
) -> None:
    with pytest.raises(StorageError, match="none"):
        read(str(tmp_path / "none"))


@pytest.mark.parametrize("ask", [storage.exists, storage.is_dir, storage.remove])
def test_a_path_that_the_system_refuses_is_a_storage_error(
    tmp_path: Path, ask: Callable[[str], object]
) -> None:
    with pytest.raises(StorageError, match="cannot be reached"):
        ask(str(tmp_path / ("x" * 300)))


def test_reading_a_folder_or_broken_json_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        storage.read_bytes(str(tmp_path))
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(StorageError, match="not valid JSON"):
        storage.read_json(str(tmp_path / "a.json"))


def test_unknown_scheme_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="gopher"):
        storage.read_bytes("gopher://host/file")


def test_file_uris_are_local_paths(tmp_path: Path) -> None:
    uri = storage.join(f"file://{tmp_path}", "a", "b.txt")
    storage.write_bytes(uri, b"x")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"x"
    assert not storage.is_remote(f"file://{tmp_path}")


@given(st.lists(SEGMENT, min_size=1, max_size=4))
def test_join_and_name_of_remote_and_local_uris(parts: list[str]) -> None:
    for root in ("s3://bucket/prefix", "s3://bucket/prefix/", "/data"):
        uri = storage.join(root, *parts)
        assert uri == "/".join([root.rstrip("/"), *parts])
        assert storage.name(uri) == storage.name(uri + "/") == parts[-1]
    assert storage.is_remote("s3://bucket/x")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"


ODD_NAMES = ["a b.png", "Schädel.png", "50%20.png", "which?.png", "x#0001.png", "a+b&c=d.csv.gz"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_objects_keep_their_names(bucket: str, name: str) -> None:
    folder = storage.join(bucket, f"of {name}")
    uri = storage.join(folder, name)
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"content")
    keys = [
        item["Key"]
        for item in boto3.session.Session()
        .client("s3")
        .list_objects_v2(Bucket="cohort")["Contents"]
    ]
    assert f"of {name}/{name}" in keys
    assert storage.read_bytes(uri) == b"content"
    assert storage.read_bytes(uri, 3) == b"con"
    assert storage.size(uri) == 7
    assert list(storage.list_files(folder)) == [uri]
    assert storage.is_dir(folder)
    storage.remove(uri)
    assert not storage.exists(uri)


def test_a_missing_object_or_bucket_is_a_storage_error(bucket: str) -> None:
    with pytest.raises(StorageError, match="no such file"):
        storage.read_bytes(storage.join(bucket, "none.png"))
    with pytest.raises(StorageError, match="nowhere"):
        list(storage.list_files("s3://nowhere/images"))


def test_listings_of_many_keys_are_whole(bucket: str) -> None:
    names = [f"many/{number:04d}.png" for number in range(2_500)]
    store = moto.backends.get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
    for name in names:  # requests would take a minute
        store.put_object("cohort", name, b"x")
    assert storage.list_files(f"{bucket}/many") == [f"{bucket}/{name}" for name in names]
    assert not storage.exists(f"{bucket}/man")


def test_reading_ahead_reads_no_more_than_the_beginning_where_that_is_asked_for(
    tmp_path: Path, bucket: str
) -> None:
    for root in (str(tmp_path), f"{bucket}/heads"):
        names = [storage.join(root, f"{number}.bin") for number in range(3)]
        for number, name in enumerate(names):
            storage.write_bytes(name, bytes([number]) * 100)
        heads = [content() for content in storage.read_ahead(names, 10)]
        assert heads == [bytes([number]) * 10 for number in range(3)]
