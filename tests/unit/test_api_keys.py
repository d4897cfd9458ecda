"""API keys: who is let in, what lies on the disk, and how soon a change counts."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetal_core import storage
from fetal_core.api_keys import KeyStore, KeyStoreError
from fetal_core.errors import StorageError
from registry_samples import Crew, create_keys

FORM = re.compile(r"fp_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@pytest.fixture(params=["disk", "S3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a file of keys may lie."""
    if request.param == "disk":
        return str(tmp_path / "keys.json")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/keys.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def change(file: Path, **values: object) -> None:
    """Edit the first key of a file by hand."""
    content = json.loads(file.read_text())
    content["keys"][0] |= values
    file.write_text(json.dumps(content))


def test_a_key_is_shown_once_and_kept_as_a_hash(uri: str) -> None:
    store = KeyStore(uri, reload_s=0)
    key_id, secret = store.create("ward 3")
    form = FORM.fullmatch(secret)
    assert form is not None
    assert form[1] == key_id
    content = storage.read_bytes(uri).decode()
    assert form[2] not in content
    (kept,) = store.list()
    assert kept.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert (kept.id, kept.label, kept.expires, kept.revoked) == (key_id, "ward 3", None, None)
    assert store.check(secret)
    assert KeyStore(uri).check(secret)


def test_keys_have_nothing_in_common(file: Path) -> None:
    store = KeyStore(str(file))
    made = [store.create("a") for _ in range(50)]
    assert len({key_id for key_id, _ in made}) == 50
    assert len({secret.split("_", 2)[2] for _, secret in made}) == 50


def test_a_revoked_key_is_refused_and_stays_listed(uri: str) -> None:
    running, store = KeyStore(uri, reload_s=0), KeyStore(uri)
    first_id, first = store.create("first")
    _, second = store.create("second")
    assert running.check(first)
    revoked = store.revoke(first_id)
    assert revoked.revoked is not None
    assert not running.check(first)
    assert running.check(second)
    assert store.revoke(first_id) == revoked
    assert [key.label for key in store.list()] == ["first", "second"]
    with pytest.raises(KeyStoreError, match=f"no key 'nobody'. It holds: {first_id} \\(first\\)"):
        store.revoke("nobody")


def test_an_expired_key_is_refused(file: Path) -> None:
    store = KeyStore(str(file), reload_s=0)
    _, secret = store.create("a", datetime.now(UTC) + timedelta(days=1))
    assert store.check(secret)
    change(file, expires=(datetime.now(UTC) - timedelta(seconds=2)).isoformat())
    assert not store.check(secret)
    with pytest.raises(KeyStoreError, match="would have expired"):
        store.create("b", datetime.now(UTC) - timedelta(days=1))


@settings(deadline=None)
@given(st.data())
def test_nothing_but_the_key_itself_is_accepted(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = KeyStore(str(tmp_path_factory.getbasetemp() / "shared-keys.json"))
    known = store.list()
    key_id, secret = (known[0].id, None) if known else store.create("a")
    text = st.text(st.characters(), max_size=80)
    forged = data.draw(text | text.map(lambda tail: f"fp_{key_id}_{tail}"))
    assert not store.check(forged)
    assert secret is None or store.check(secret)


@settings(deadline=None)
@given(position=st.integers(0, 60), character=st.characters(min_codepoint=33, max_codepoint=255))
def test_a_key_with_one_character_changed_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, character: str
) -> None:
    store = KeyStore(str(tmp_path_factory.mktemp("keys") / "keys.json"))
    _, secret = store.create("a")
    position %= len(secret)
    forged = secret[:position] + character + secret[position + 1 :]
    assert store.check(forged) == (forged == secret)
    for other in (secret[:-1], secret + "x", secret.upper(), f" {secret}", f"{secret}\n"):
        assert not store.check(other)


def test_without_a_file_nobody_is_let_in_until_there_is_a_key(uri: str) -> None:
    running = KeyStore(uri, reload_s=0)
    assert running.list() == ()
    assert not running.check("")
    _, secret = KeyStore(uri).create("a")
    assert running.check(secret)


def test_the_file_is_not_read_again_before_its_time(file: Path) -> None:
    slow, prompt = KeyStore(str(file), reload_s=3600), KeyStore(str(file), reload_s=0)
    _, first = prompt.create("first")
    assert slow.check(first)
    _, second = prompt.create("second")
    assert (prompt.check(second), slow.check(second)) == (True, False)


def test_only_the_owner_may_read_and_no_other_may_write(file: Path) -> None:
    store = KeyStore(str(file), reload_s=0)
    _, secret = store.create("a")
    store.create("b")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.stat().st_mode & 0o077 for path in file.parent.iterdir()] == [0, 0]
    file.chmod(0o644)
    assert store.check(secret)
    for mode in (0o620, 0o602):
        file.chmod(mode)
        for call in (store.list, lambda: store.create("c"), lambda: KeyStore(str(file)).check("x")):
            with pytest.raises(KeyStoreError, match=r"other users may write.*chmod 600"):
                call()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"keys": [{}]}', b"\xff", b'{"more": 1}'])
def test_a_damaged_file_is_an_error_and_is_not_overwritten(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0o600)
    store = KeyStore(str(file), reload_s=0)
    for call in (store.list, lambda: store.create("a"), lambda: store.check("x")):
        with pytest.raises(KeyStoreError, match=r"keys\.json: not a file of keys"):
            call()
    assert file.read_bytes() == content


def test_while_the_file_is_damaged_known_keys_hold_for_the_grace_time(file: Path) -> None:
    patient = KeyStore(str(file), reload_s=0, grace_s=3600)
    strict = KeyStore(str(file), reload_s=0, grace_s=0)
    _, secret = patient.create("a")
    assert (patient.check(secret), strict.check(secret)) == (True, True)
    good = file.read_bytes()
    file.write_bytes(b"{")
    assert (patient.check(secret), strict.check(secret)) == (True, False)
    file.write_bytes(good)
    assert (patient.check(secret), strict.check(secret)) == (True, True)
    file.unlink()
    assert (patient.check(secret), strict.check(secret)) == (False, False)


@pytest.mark.parametrize("label", ["", "  ", "a\nb", "a\x1b[31mb", "x" * 81])
def test_labels_that_cannot_be_shown_are_refused(file: Path, label: str) -> None:
    with pytest.raises(KeyStoreError, match="printable"):
        KeyStore(str(file)).create(label)
    assert not file.exists()


def test_no_key_of_concurrent_processes_is_lost(file: Path) -> None:
    labels = [[f"{process}-{key}" for key in range(3)] for process in range(4)]
    made = Crew(create_keys, str(file), labels).answers()
    store = KeyStore(str(file))
    assert sorted(key.label for key in store.list()) == sorted(chain(*labels))
    assert all(store.check(secret) for secrets in made for secret in secrets)


def test_threads_that_come_first_together_all_wait_for_the_keys(file: Path) -> None:
    _, secret = KeyStore(str(file)).create("a")
    store, gate = KeyStore(str(file)), threading.Barrier(8)
    answers: list[bool] = []

    def ask() -> None:
        gate.wait()
        answers.append(store.check(secret))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 8


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(StorageError):
        KeyStore(str(tmp_path / "folder" / "keys.json")).create("a")
