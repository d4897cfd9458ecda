"""S3 on a real server: contents, listings, links, plain errors, and a store that is killed."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from fetal_core import conditional, objects, s3, storage
from fetal_core.arrow_files import filesystem
from fetal_core.checkpoint import CheckpointStore
from fetal_core.errors import ConfigError, StorageError, StoreAwayError
from juicefs import BUCKET, KEY_ID, SECRET, Gateway, gateway
from ray_jobs import key
from ray_jobs.command import entry

KILLS = 4
LARGE = random.Random(1).randbytes(2 * objects.PART_BYTES + 12_345)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("s3") / "store") as running:
        yield running


@pytest.fixture
def root(server: Gateway, tmp_path: Path) -> str:
    """A prefix of this test alone."""
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.mark.parametrize("data", [b"", b"small", LARGE], ids=["empty", "small", "in parts"])
def test_contents_come_back(root: str, tmp_path: Path, data: bytes) -> None:
    storage.write_bytes(f"{root}/a.bin", data)
    (tmp_path / "b.bin").write_bytes(data)
    storage.upload(tmp_path / "b.bin", f"{root}/b.bin")
    for name in ("a.bin", "b.bin"):
        assert storage.read_bytes(f"{root}/{name}") == data
        assert storage.size(f"{root}/{name}") == len(data)
    assert storage.read_bytes(f"{root}/a.bin", 3) == data[:3]


def test_a_prefix_is_a_folder_only_up_to_a_slash(root: str) -> None:
    for name in ("run/a", "run/deep/b", "run-2/c", "run.json"):
        storage.write_bytes(f"{root}/{name}", b"x")
    boto3.session.Session().client("s3").put_object(
        Bucket=BUCKET, Key=f"{root[len(f's3://{BUCKET}/') :]}/run/empty/"
    )
    assert storage.list_files(f"{root}/run") == [f"{root}/run/a", f"{root}/run/deep/b"]
    assert storage.list_files(f"{root}/run", recursive=False) == [f"{root}/run/a"]
    assert storage.is_dir(f"{root}/run")
    assert not storage.is_dir(f"{root}/ru")
    assert not storage.exists(f"{root}/ru")
    storage.remove(f"{root}/run")
    assert storage.list_files(root) == [f"{root}/run-2/c", f"{root}/run.json"]
    with pytest.raises(StorageError, match="whole bucket"):
        storage.remove(f"s3://{BUCKET}")


def test_files_are_read_ahead_in_order_and_errors_come_with_their_file(root: str) -> None:
    names = [f"{root}/{number}" for number in range(40)]
    for name in names[::2]:
        storage.write_bytes(name, name.encode())
    for name, content in zip(names, storage.read_ahead(names), strict=True):
        if int(name.rpartition("/")[2]) % 2:
            with pytest.raises(StorageError, match=name):
                content()
        else:
            assert content() == name.encode()


def test_pyarrow_reads_and_writes_through_the_same_client(root: str, tmp_path: Path) -> None:
    table = pa.table({"name": ["a", "b"], "image": [b"x" * 1000, b"y" * 1000]})
    fs, path = filesystem(f"{root}/t.parquet")
    pq.write_table(table, path, filesystem=fs)
    assert pq.read_table(path, filesystem=fs, columns=["name"]).equals(table.select(["name"]))
    (tmp_path / "from/deep").mkdir(parents=True)
    (tmp_path / "from/deep/file").write_bytes(LARGE)
    (tmp_path / "to").mkdir()
    _, prefix = filesystem(f"{root}/copied")
    pafs.copy_files(str(tmp_path / "from"), prefix, pafs.LocalFileSystem(), fs)
    assert storage.list_files(f"{root}/copied") == [f"{root}/copied/deep/file"]
    pafs.copy_files(f"{prefix}/deep", str(tmp_path / "to"), fs, pafs.LocalFileSystem())
    assert (tmp_path / "to/file").read_bytes() == LARGE


def test_a_stream_that_an_exception_left_open_becomes_no_object(root: str) -> None:
    fs, path = filesystem(f"{root}/a.bin")

    def write_half() -> None:
        fs.open_output_stream(path).write(b"half")
        raise RuntimeError("the other half is lost")

    with pytest.raises(RuntimeError, match="other half"):
        write_half()
    gc.collect()
    assert not storage.exists(f"{root}/a.bin")


def test_a_link_works_without_credentials_until_it_expires(root: str) -> None:
    storage.write_bytes(f"{root}/report.html", b"<p>report</p>")
    with urllib.request.urlopen(objects.link(f"{root}/report.html", 60)) as answer:
        assert answer.read() == b"<p>report</p>"
        assert answer.headers["Content-Type"].startswith("text/html")
    link = objects.link(f"{root}/report.html", 1)
    time.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(link)


def test_settings_may_lie_in_aws_files(
    root: str, server: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{root}/a", b"x")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile ward]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n"
    )
    (tmp_path / "credentials").write_text(
        f"[ward]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "ward")
    assert storage.read_bytes(f"{root}/a") == b"x"
    fs, path = filesystem(f"{root}/a")
    assert fs.open_input_stream(path).read() == b"x"


FAULTS = {
    "no credentials": (
        {
            "AWS_ACCESS_KEY_ID": None,
            "AWS_SECRET_ACCESS_KEY": None,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        },
        "no AWS credentials",
    ),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "other"}, "does not know this access key"),
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "other-secret"}, "secret key does not belong"),
    "wrong token": ({"AWS_SESSION_TOKEN": "other"}, "session token"),
    "no scheme": ({"AWS_ENDPOINT_URL": "localhost:9000"}, "with http:// or https://"),
    "no such profile": ({"AWS_PROFILE": "other"}, "profile"),
    "nothing listens": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_message(
    server: Gateway,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fresh_contact: None,
) -> None:
    changed, expected = FAULTS[fault]
    for name, value in changed.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    assert refused(f"s3://{BUCKET}/keys.json", capsys).count(expected) == 1


def test_a_store_without_etags_is_read_and_not_changed(root: str) -> None:
    uri = f"{root}/keys.json"
    storage.write_bytes(uri, b"first")
    found = conditional.read(uri)
    assert found is not None
    assert found.data == b"first"
    with pytest.raises(StorageError, match="gives no ETag"):
        conditional.write(uri, b"second", found)
    assert storage.read_bytes(uri) == b"first"


def test_a_bucket_that_is_not_there_is_said(
    server: Gateway, capsys: pytest.CaptureFixture[str], fresh_contact: None
) -> None:
    assert "no such bucket" in refused("s3://nowhere/keys.json", capsys)


@pytest.fixture
def fresh_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not reached a store yet."""
    monkeypatch.setattr(s3, "_contact", s3._Contact())


def refused(uri: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that cannot use a file of keys."""
    assert entry(key.main, ["list", "--keys", uri]) == 2
    said = capsys.readouterr().err
    assert uri in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan", ""])
def test_patience_is_a_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(s3.PATIENCE, text)
    with pytest.raises(ConfigError, match=s3.PATIENCE):
        s3.patience_s()


def test_a_store_that_stays_away_is_given_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_contact: None
) -> None:
    with gateway(tmp_path / "store") as server:
        storage.write_bytes(f"s3://{BUCKET}/a", b"x")
        monkeypatch.setenv(s3.PATIENCE, "1")
        server.kill()
        for _ in range(200):  # each with a patience of its own would take minutes
            with pytest.raises(StoreAwayError, match="does not answer"):
                storage.read_bytes(f"s3://{BUCKET}/a")
        server.start()
        assert storage.read_bytes(f"s3://{BUCKET}/a") == b"x"


@contextmanager
def killed_again_and_again(server: Gateway, seed: int) -> Iterator[None]:
    """A store that is killed at random moments and comes back a moment later, some times."""
    done = threading.Event()

    def keep_killing() -> None:
        moments = random.Random(seed)
        for _ in range(KILLS):
            done.wait(moments.uniform(0.02, 0.5))
            server.kill()
            done.wait(moments.uniform(0.0, 0.5))
            server.start()

    killer = threading.Thread(target=keep_killing)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()


def test_a_killed_store_is_waited_for_and_nothing_is_ever_half_there(tmp_path: Path) -> None:
    whole = {hashlib.sha256(LARGE).hexdigest(): LARGE, hashlib.sha256(b"old").hexdigest(): b"old"}
    seen: list[str] = []
    with gateway(tmp_path / "store") as server:
        uri = f"s3://{BUCKET}/model.bin"
        storage.write_bytes(uri, b"old")
        done = threading.Event()

        def keep_reading() -> None:
            while not done.is_set():
                seen.append(storage.sha256(uri))

        reader = threading.Thread(target=keep_reading)
        with killed_again_and_again(server, seed=4):
            reader.start()
            for data in (LARGE, b"old", LARGE):
                storage.write_bytes(uri, data)
                assert storage.read_bytes(uri) == data
            done.set()
            reader.join()
    assert set(seen) <= set(whole)


def test_checkpoints_written_to_a_killed_store_are_whole(tmp_path: Path) -> None:
    with gateway(tmp_path / "store") as server:
        store = CheckpointStore(f"s3://{BUCKET}/run/checkpoints")
        with killed_again_and_again(server, seed=5):
            for epoch in range(1, 4):
                content = LARGE[epoch:]

                def save(folder: Path, content: bytes = content) -> None:
                    (folder / "model.safetensors").write_bytes(content)
                    (folder / "trainer.pt").write_bytes(content[:100])

                store.add(f"epoch-{epoch:04d}", save, is_best=epoch == 1)
                with store.open("latest") as folder:
                    assert folder is not None
                    assert (folder / "model.safetensors").read_bytes() == content
        with store.best() as folder:
            assert (folder / "model.safetensors").read_bytes() == LARGE[1:]
        left = {uri.split("/")[-2] for uri in storage.list_files(store.uri)}
        assert left == {"checkpoints", "epoch-0001", "epoch-0003"}


def test_a_checkpoint_given_up_in_the_middle_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gateway(tmp_path / "store") as server:
        store = CheckpointStore(f"s3://{BUCKET}/run/checkpoints")
        store.add("epoch-0001", lambda folder: save_files(folder, b"first"), is_best=True)
        monkeypatch.setenv(s3.PATIENCE, "0.2")

        def save_and_kill(folder: Path) -> None:
            save_files(folder, LARGE)
            threading.Timer(0.1, server.kill).start()

        with pytest.raises(StoreAwayError):
            store.add("epoch-0001", save_and_kill, is_best=True)
        server.start()
        with store.open("latest") as folder:
            assert folder is not None
            kept = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert kept == {"model.safetensors": b"first", "trainer.pt": b"first"}


def save_files(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    (folder / "trainer.pt").write_bytes(content)
