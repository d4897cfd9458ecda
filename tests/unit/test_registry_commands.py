"""Commands of the registry and of keys, and `serve --keys`: what they say and how they end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fetal_core.api_keys import KeyStore
from fetal_core.registry import Registry
from ray_jobs.command import stage
from registry_samples import write_bundle


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user with two bundles."""
    monkeypatch.chdir(tmp_path)
    write_bundle("first", b"1")
    write_bundle("second", b"2")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command."""
    capsys.readouterr()
    code = stage(words[0], words[1:])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_from_a_bundle_to_a_champion_and_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "register", "first", "--name", "planes") == (
        0,
        f"planes version 1: {folder}/registry/models/planes/versions/0001\n"
        "3 files, each compared by SHA-256; test accuracy 0.875, test macro f1 0.625, "
        "val accuracy 0.750, val macro f1 0.500\n"
        "next: fetal promote planes 1 --alias champion\n",
        "",
    )
    for words, said in (
        ("promote planes 1 --alias champion", "planes@champion: version 1\n"),
        ("promote planes 1 --alias champion", "planes@champion: version 1 (as before)\n"),
        ("promote planes 2 --alias champion", "planes@champion: version 1 -> 2\n"),
        ("rollback planes --alias champion", "planes@champion: version 2 -> 1\n"),
    ):
        if "2" in words:
            assert run(capsys, "register", "second", "--name", "planes")[0] == 0
        assert run(capsys, *words.split()) == (0, said, "")
    again = run(capsys, "register", "first", "--name", "planes")
    assert "already has the aliases champion" in again[1]
    assert Registry("registry").aliases("planes") == {"champion": 1}


def test_another_registry_is_named_in_what_comes_next(
    capsys: pytest.CaptureFixture[str], bucket: str
) -> None:
    place = f"{bucket}/commands"
    _, said, _ = run(capsys, "register", "first", "--name", "planes", "--registry", place)
    command = said.splitlines()[-1].removeprefix("next: fetal ")
    assert run(capsys, *command.split()) == (0, "planes@champion: version 1\n", "")
    assert Registry(place).resolve("planes", "champion")[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("promote planes 7 --alias champion", "planes has no version 7. It has: 1, 2."),
        ("promote plane 1 --alias champion", "no model 'plane'; did you mean 'planes'?"),
        ("promote planes 1 --alias ../x", "cannot name an alias"),
        ("rollback planes --alias champion", "nothing to go back to before version 2"),
        ("rollback planes --alias champ", "no alias 'champ'; did you mean 'champion'?"),
        ("register nowhere --name planes", "not a model bundle"),
        ("register first --name Planes", "cannot name a model"),
        ("key revoke abc", "no key 'abc'. It holds: none."),
        ("key creat x", "did you mean 'create'?"),
        ("key", "usage: fetal key create LABEL | revoke ID | list"),
        ("key create x --expires-days 0", "--expires-days 0.0"),
    ],
)
def test_errors_are_messages_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    registry = Registry("registry")
    for bundle in ("first", "second"):
        registry.register(bundle, "planes")
    registry.promote("planes", 2, "champion")
    code, out, err = run(capsys, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert registry.aliases("planes") == {"champion": 2}


def test_keys_are_created_listed_and_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    code, secret, hint = run(capsys, "key", "create", "ward [3]", "--expires-days", "90")
    assert code == 0
    assert re.fullmatch(r"fp_[0-9a-f]{12}_[\w-]{43}\n", secret)
    key_id = secret.split("_")[1]
    assert "not shown again" in hint
    assert KeyStore("keys.json").check(secret.strip())
    listed = run(capsys, "key", "list")[1]
    assert re.search(rf"{key_id} +ward \[3\] .*valid until \d{{4}}-\d\d-\d\d", listed)
    assert secret.split("_", 2)[2].strip() not in listed
    code, said, _ = run(capsys, "key", "revoke", key_id)
    assert code == 0
    assert said.startswith(f"key {key_id} (ward [3]) is revoked since 2")
    assert "revoked 2" in run(capsys, "key", "list")[1]
    assert not KeyStore("keys.json").check(secret.strip())


def test_key_without_keys_says_how_to_create_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(capsys, "key", "list", "--keys", "other.json")
    assert (code, said) == (0, "other.json: no keys; `fetal key create LABEL` creates one\n")
    assert run(capsys, "key", "--help")[1].startswith("usage: fetal key create LABEL")


@pytest.mark.parametrize(
    "flags", [("--keys", "keys.jsn"), ("--http.require-key", "--http.keys-uri", "keys.jsn")]
)
def test_an_endpoint_whose_keys_are_not_there_does_not_start(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    run(capsys, "key", "create", "ward-3")
    code, _, said = run(capsys, "serve", "no-model", *flags)
    assert code == 2
    assert "keys.jsn: no such file" in said
    assert "fetal key create NAME --keys keys.jsn" in said


def test_an_endpoint_whose_keys_are_damaged_does_not_start(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "keys.json").write_text("{")
    code, _, said = run(capsys, "serve", "no-model", "--keys", "keys.json")
    assert code == 2
    assert "keys.json: not a file of keys" in said


def test_an_endpoint_that_lets_nobody_in_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    key_id = run(capsys, "key", "create", "ward-3")[1].split("_")[1]
    quiet = run(capsys, "serve", "no-model", "--keys", "keys.json")[1]
    run(capsys, "key", "revoke", key_id)
    warned = run(capsys, "serve", "no-model", "--keys", "keys.json")[1]
    assert quiet == ""
    assert warned == "warning: no key of keys.json is valid; `fetal key create` adds one\n"


@pytest.mark.parametrize("flags", [("--connections", "0"), ("--port", "0")])
def test_where_an_endpoint_cannot_listen_is_told_at_once(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    code, _, said = run(capsys, "serve", "no-model", *flags)
    assert code != 0
    assert flags[0].removeprefix("--") in said
