"""The registry: versions that stay what they were, aliases that move and move back."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import integers

from builders import SIZE_PX, toy_bundle, toy_store
from fetal_core import storage
from fetal_core.bundle import MODEL, WEIGHTS, Bundle
from fetal_core.errors import FetalError, ModelError, StorageError
from fetal_core.registry import Registry
from fetal_core.registry_records import RegistryError
from registry_samples import NAME, filled, write_bundle


@pytest.fixture(params=["disk", "S3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a registry may lie."""
    if request.param == "disk":
        return str(tmp_path / "registry")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return filled(str(tmp_path / "registry"), tmp_path / "source", versions=4)


def file_in(registry: Registry, number: int, path: str) -> Path:
    return Path(registry.bundle_uri(NAME, number)) / path


def test_a_version_holds_the_bundle_and_its_origin(place: str, tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    write_bundle(str(source))
    (source / ".left-over.tmp").write_bytes(b"of a write that was killed")
    registry = Registry(place)
    assert registry.register(str(source), NAME) == 1
    number, uri = registry.resolve(NAME, 1)
    kept = (WEIGHTS, MODEL, "engines/openvino/model.xml")
    for file in kept:
        assert storage.read_bytes(storage.join(uri, file)) == (source / file).read_bytes()
    info = registry.verify(NAME, number)
    assert info.files == {
        file: hashlib.sha256((source / file).read_bytes()).hexdigest() for file in kept
    }
    assert (info.number, info.source, info.git_commit) == (1, str(source), "c0ffee")
    assert info.metrics == {
        "test_accuracy": 0.875,
        "test_macro_f1": 0.625,
        "val_accuracy": 0.75,
        "val_macro_f1": 0.5,
    }
    assert uri == f"{place}/models/planes/versions/0001"


def test_a_content_has_one_number(place: str, tmp_path: Path) -> None:
    registry = filled(place, tmp_path, versions=2)
    assert registry.register(str(tmp_path / "1"), NAME) == 1
    assert registry.register(write_bundle(str(tmp_path / "copy"), b"weights 2"), NAME) == 2
    engine = write_bundle(str(tmp_path / "2"), b"weights 2", engine=b"<int8/>")
    assert registry.register(engine, NAME) == 3
    assert [info.number for info in registry.versions(NAME)] == [1, 2, 3]
    assert registry.register(str(tmp_path / "1"), "other") == 1
    assert registry.models() == ["other", NAME]


def test_between_stores_in_both_directions(tmp_path: Path, bucket: str) -> None:
    remote, local = Registry(f"{bucket}/both/registry"), Registry(str(tmp_path / "registry"))
    remote.register(write_bundle(str(tmp_path / "bundle")), NAME)
    local.register(remote.resolve(NAME, 1)[1], NAME)
    assert local.verify(NAME, 1).files == remote.verify(NAME, 1).files
    assert local.verify(NAME, 1).source == remote.bundle_uri(NAME, 1)


def test_a_registered_network_gives_the_same_logits(tmp_path: Path) -> None:
    toy_bundle().save(str(tmp_path / "bundle"))
    bundle = Bundle.load(str(tmp_path / "bundle"))
    registry = Registry(str(tmp_path / "registry"))
    registry.promote(NAME, registry.register(str(tmp_path / "bundle"), NAME), "champion")
    loaded = Bundle.load(registry.resolve(NAME, "champion")[1])
    images_N1HW = toy_store(4, size_px=SIZE_PX).images(range(4)).float() / 255
    with torch.inference_mode():
        assert torch.equal(loaded.model(images_N1HW), bundle.model(images_N1HW))


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "Planes", "7", "x" * 65, "ä", "a\n"])
def test_unsafe_names_are_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    for call in (
        lambda: registry.register(str(tmp_path / "source" / "1"), name),
        lambda: registry.versions(name),
        lambda: registry.promote(NAME, 1, name),
        lambda: registry.promote(name, 1, "champion"),
        lambda: registry.alias_state(NAME, name),
    ):
        with pytest.raises(RegistryError, match="a-z, 0-9"):
            call()
    assert registry.models() == [NAME]
    assert registry.aliases(NAME) == {}


def remove_model(folder: Path) -> None:
    (folder / MODEL).unlink()


def remove_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def damage_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"Weights")


@pytest.mark.parametrize("spoil", [remove_model, remove_weights, damage_weights])
def test_what_is_not_a_sound_bundle_is_not_registered(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(Path(write_bundle(str(tmp_path / "bundle"))))
    registry = Registry(str(tmp_path / "registry"))
    with pytest.raises(ModelError, match="bundle"):
        registry.register(str(tmp_path / "bundle"), NAME)
    assert not (tmp_path / "registry").exists()


def test_aliases_move_and_move_back(place: str, tmp_path: Path) -> None:
    registry = filled(place, tmp_path, versions=3)
    for version in (1, 2, 2, 3):
        registry.promote(NAME, version, "champion")
    registry.promote(NAME, 1, "shadow")
    assert registry.aliases(NAME) == {"champion": 3, "shadow": 1}
    etags = [registry.alias_state(NAME, "champion").etag]
    for expected in (2, 1):
        state = registry.rollback(NAME, "champion")
        assert registry.resolve(NAME, "champion") == (
            expected,
            registry.bundle_uri(NAME, expected),
        )
        etags.append(state.etag)
    etags.append(registry.promote(NAME, 3, "champion").etag)
    assert len(set(etags)) == 4
    assert registry.rollback(NAME, "champion").version == 1
    moves = [(move.kind, move.version) for move in registry.alias_state(NAME, "champion").history]
    assert moves == [
        ("promote", 1),
        ("promote", 2),
        ("promote", 3),
        ("rollback", 2),
        ("rollback", 1),
        ("promote", 3),
        ("rollback", 1),
    ]
    with pytest.raises(RegistryError, match="nothing to go back to before version 1"):
        registry.rollback(NAME, "champion")


def test_errors_say_what_there_is(registry: Registry) -> None:
    registry.promote(NAME, 2, "champion")
    for call, message in (
        (lambda: registry.promote(NAME, 9, "champion"), "no version 9. It has: 1, 2, 3, 4"),
        (lambda: registry.resolve(NAME, "0"), "no version 0. It has: 1, 2, 3, 4"),
        (lambda: registry.resolve(NAME, "champoin"), "did you mean 'champion'.*has: champion"),
        (lambda: registry.rollback("plans", "champion"), "did you mean 'planes'.*holds: planes"),
        (lambda: Registry(registry.uri + "2").versions(NAME), "holds: nothing.*fetal register"),
        (lambda: registry.resolve(NAME, "9" * 5000), "cannot name an alias"),
    ):
        with pytest.raises(RegistryError, match=message):
            call()


def test_all_that_was_tampered_with_is_named_and_mended(registry: Registry, tmp_path: Path) -> None:
    registry.promote(NAME, 1, "champion")
    weights, engine = file_in(registry, 2, WEIGHTS), file_in(registry, 2, "engines/openvino")
    weights.write_bytes(b"weights 7")
    (engine / "model.xml").unlink()
    (engine.parent / "openvino-int8").mkdir()
    (engine.parent / "openvino-int8" / "model.xml").write_text("<other/>")
    with pytest.raises(RegistryError) as caught:
        registry.promote(NAME, 2, "champion")
    assert [line.strip() for line in str(caught.value).splitlines()[1:4]] == [
        "- engines/openvino-int8/model.xml: not part of what was registered",
        "- engines/openvino/model.xml: not there any more",
        f"- {WEIGHTS}: changed",
    ]
    assert registry.aliases(NAME) == {"champion": 1}
    (engine.parent / "openvino-int8" / "model.xml").unlink()
    assert registry.register(str(tmp_path / "source" / "2"), NAME) == 2
    assert registry.promote(NAME, 2, "champion").version == 2


def test_a_record_that_was_adapted_to_other_files_is_refused(
    registry: Registry, tmp_path: Path
) -> None:
    file_in(registry, 2, WEIGHTS).write_bytes(b"weights 7")
    record = file_in(registry, 2, "version.json")
    values = json.loads(record.read_text())
    values["files"][WEIGHTS] = hashlib.sha256(b"weights 7").hexdigest()
    record.write_text(json.dumps(values))
    with pytest.raises(RegistryError, match="other files than the number was claimed for"):
        registry.verify(NAME, 2)
    registry.register(str(tmp_path / "source" / "2"), NAME)
    assert registry.verify(NAME, 2).number == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"number": "x"}', b"\xff"])
def test_damaged_records_are_errors_that_name_the_file(registry: Registry, content: bytes) -> None:
    registry.promote(NAME, 1, "champion")
    alias = Path(registry.uri) / "models" / NAME / "aliases" / "champion.json"
    for file, call in (
        (file_in(registry, 3, "version.json"), lambda: registry.resolve(NAME, 3)),
        (alias, lambda: registry.alias_state(NAME, "champion")),
    ):
        file.write_bytes(content)
        with pytest.raises(RegistryError, match=f"{file.name}: damaged"):
            call()


def test_a_store_that_cannot_be_reached_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"champion\.json: cannot be read"):
        Registry("s3://nowhere-at-all/registry").alias_state(NAME, "champion")
    with pytest.raises(FetalError):
        Registry("ftp://host/registry").alias_state(NAME, "champion")


def test_a_file_in_place_of_the_registry_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("a file")
    bundle = write_bundle(str(tmp_path / "bundle"))
    with pytest.raises(StorageError):
        Registry(str(tmp_path / "registry")).register(bundle, NAME)


class AliasMachine(RuleBasedStateMachine):
    """An alias against a stack of versions and a list of moves."""

    registry: Registry

    @initialize()
    def begin(self) -> None:
        self.alias = f"a{uuid.uuid4().hex}"
        self.stack: list[int] = []
        self.moves: list[tuple[str, int]] = []

    @rule(version=integers(1, 3))
    def promote(self, version: int) -> None:
        self.registry.promote(NAME, version, self.alias)
        if self.stack[-1:] != [version]:
            self.stack.append(version)
            self.moves.append(("promote", version))

    @precondition(lambda self: len(self.stack) > 1)
    @rule()
    def roll_back(self) -> None:
        self.registry.rollback(NAME, self.alias)
        self.stack.pop()
        self.moves.append(("rollback", self.stack[-1]))

    @precondition(lambda self: len(self.stack) <= 1)
    @rule()
    def roll_back_too_far(self) -> None:
        with pytest.raises(RegistryError):
            self.registry.rollback(NAME, self.alias)

    @rule(version=integers(-2, 0) | integers(4, 99))
    def promote_a_missing_version(self, version: int) -> None:
        with pytest.raises(RegistryError, match=r"It has: 1, 2, 3\."):
            self.registry.promote(NAME, version, self.alias)

    @invariant()
    def the_alias_is_as_the_model_says(self) -> None:
        if not self.stack:
            assert self.alias not in self.registry.aliases(NAME)
            return
        state = self.registry.alias_state(NAME, self.alias)
        assert [*state.previous, state.version] == self.stack
        assert [(move.kind, move.version) for move in state.history] == self.moves
        assert self.registry.resolve(NAME, self.alias)[0] == self.stack[-1]


def test_aliases_agree_with_a_stack(tmp_path: Path) -> None:
    class Machine(AliasMachine):
        registry = filled(str(tmp_path / "registry"), tmp_path, versions=3)

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=40, stateful_step_count=15, deadline=None)
    )
