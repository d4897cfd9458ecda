"""The model registry: immutable versions of bundles, and aliases that move between them.

``models/NAME/versions/000N/`` is a copy of a bundle with two more files: ``claim.json``, which
binds the number to a content before anything is copied, and ``version.json``, which is written last
and makes the version visible. ``models/NAME/aliases/ALIAS.json`` holds where an alias points and
pointed.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from fetal_core import conditional, storage
from fetal_core.conditional import ConflictError, Snapshot
from fetal_core.config import digest, nearest
from fetal_core.registry_files import (
    CLAIM,
    VERSION,
    bundle_files,
    copy_file,
    headline,
    inspect_bundle,
    visible_files,
)
from fetal_core.registry_records import (
    AliasState,
    Claim,
    RegistryError,
    VersionInfo,
    check_name,
    dump_record,
    now,
    parse_record,
)

logger = logging.getLogger(__name__)


class Registry:
    """Models in a local folder or under ``s3://BUCKET/PREFIX``; safe for concurrent processes."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)

    def register(self, bundle_uri: str, name: str) -> int:
        """Copy a bundle, exported engines included, into the registry.

        The same content has the same number however often it is registered; registering it again
        completes a copy that was interrupted and mends files that were damaged.

        Returns:
            The number of the version.

        Raises:
            RegistryError: not a name for a model, or files of the bundle changed meanwhile.
            ModelError: not a bundle, or its weights are not those it was saved with.
            StorageError: the bundle cannot be read, or the registry cannot be written.
        """
        check_name("model", name)
        source = storage.absolute(bundle_uri)
        info, files = inspect_bundle(source)
        number = self._claim(name, digest(files))
        target = self.bundle_uri(name, number)
        for path, sha256 in files.items():
            copy_file(storage.join(source, path), storage.join(target, path), sha256)
        record = VersionInfo(
            number=number,
            created=now(),
            source=source,
            files=files,
            metrics=headline(info),
            git_commit=info.git_commit,
        )
        _publish(storage.join(target, VERSION), record)
        logger.info("%s version %d: %s", name, number, target)
        return number

    def promote(self, name: str, version: int, alias: str) -> AliasState:
        """Let an alias point to a version, whose files are checked first.

        Promoting the version it points to already changes nothing.

        Raises:
            RegistryError: no such model or version, a file of it changed, or not an alias's name.
            ConflictError: other processes were first, again and again.
        """
        check_name("alias", alias)
        self.verify(name, version)

        uri = self._alias_uri(name, alias)

        def move(data: bytes | None) -> bytes:
            if data is None:
                return dump_record(AliasState.first(version))
            old = parse_record(AliasState, data, uri)
            return data if old.version == version else dump_record(old.promoted(version))

        return parse_record(AliasState, conditional.update(uri, move), uri)

    def rollback(self, name: str, alias: str) -> AliasState:
        """Let an alias point to the version before; each further time, to the one before that.

        It is not repeated when the alias moves meanwhile: what it would undo then is not what its
        caller saw.

        Raises:
            RegistryError: no such alias, or nothing lies before its version.
            ConflictError: another process moved the alias at the same time.
        """
        old = self.alias_state(name, alias)
        if not old.previous:
            raise RegistryError(
                f"{name}@{alias}: nothing to go back to before version {old.version}. "
                "Promote another version."
            )
        self.version(name, old.previous[-1])
        uri = self._alias_uri(name, alias)

        def move(data: bytes | None) -> bytes:
            if data is None or parse_record(AliasState, data, uri).etag != old.etag:
                raise ConflictError(
                    f"{name}@{alias}: another process moved it meanwhile. "
                    "Look where it points now and try again."
                )
            return dump_record(old.rolled_back())

        return parse_record(AliasState, conditional.update(uri, move), uri)

    def verify(self, name: str, version: int) -> VersionInfo:
        """Compare every file of a version with what was registered.

        Raises:
            RegistryError: no such version, or files changed, were added or removed; names all.
            StorageError: a file cannot be read.
        """
        info = self.version(name, version)
        uri = self.bundle_uri(name, version)
        found = set(bundle_files(uri))
        faults = [f"{path}: not there any more" for path in sorted(info.files.keys() - found)]
        faults += [f"{path}: not part of what was registered" for path in found - set(info.files)]
        for path in sorted(found & set(info.files)):
            if storage.sha256(storage.join(uri, path)) != info.files[path]:
                faults.append(f"{path}: changed")
        if self._claimed(name, version) != digest(info.files):
            faults.append(f"{VERSION}: names other files than the number was claimed for")
        if faults:
            listed = "\n".join(f"  - {fault}" for fault in sorted(faults))
            raise RegistryError(
                f"{uri}: not what was registered as {name} version {version}:\n{listed}\n"
                f"Remove what was added and register {info.source} again, which mends the rest."
            )
        return info

    def resolve(self, name: str, alias_or_version: str | int) -> tuple[int, str]:
        """The number and the bundle that an alias or a number stands for.

        Raises:
            RegistryError: no such model, version or alias.
        """
        word = str(alias_or_version)
        number = (
            int(word)
            if word.isdecimal() and len(word) < 10
            else self.alias_state(name, word).version
        )
        self.version(name, number)
        return number, self.bundle_uri(name, number)

    def models(self) -> list[str]:
        """Names of the models that have a version, sorted."""
        root = storage.join(self.uri, "models")
        paths = [path.split("/") for path in visible_files(root)]
        return sorted({path[0] for path in paths if path[1::2] == ["versions", VERSION]})

    def versions(self, name: str) -> list[VersionInfo]:
        """All complete versions of a model, oldest first.

        Raises:
            RegistryError: no such model, or a ``version.json`` of it is damaged.
        """
        return [self.version(name, number) for number in self._known(name)]

    def version(self, name: str, number: int) -> VersionInfo:
        """What is recorded about a version.

        Raises:
            RegistryError: no such model or version, or its ``version.json`` is damaged.
        """
        check_name("model", name)
        uri = storage.join(self.bundle_uri(name, number), VERSION)
        record = conditional.read(uri)
        if record is None:
            known = ", ".join(map(str, self._known(name)))
            raise RegistryError(f"{name} has no version {number}. It has: {known}.")
        return parse_record(VersionInfo, record.data, uri)

    def aliases(self, name: str) -> dict[str, int]:
        """Where each alias of a model points.

        Raises:
            RegistryError: no such model, or an alias file of it is damaged.
        """
        self._known(name)
        files = visible_files(storage.join(self.uri, "models", name, "aliases"))
        found = [file.removesuffix(".json") for file in files if file.endswith(".json")]
        return {alias: self.alias_state(name, alias).version for alias in found}

    def alias_state(self, name: str, alias: str) -> AliasState:
        """Where an alias points and pointed.

        Raises:
            RegistryError: no such alias; lists those there are.
            StorageError: the registry does not answer.
        """
        current = self.alias_file(name, alias)
        if current is None:
            known = list(self.aliases(name))
            raise RegistryError(
                f"{name} has no alias {alias!r}{nearest(alias, known) or '.'} "
                f"It has: {', '.join(known) or 'none'}. `fetal promote {name} VERSION "
                f"--alias {alias}` sets it."
            )
        return parse_record(AliasState, current.data, self._alias_uri(name, alias))

    def alias_file(self, name: str, alias: str, known: Snapshot | None = None) -> Snapshot | None:
        """An alias's file, None where there is none: one small request, to be polled each second.

        Args:
            name: of the model.
            alias: of a version.
            known: what the last look gave; the same again while the alias stands still.
        """
        check_name("model", name)
        check_name("alias", alias)
        return conditional.read(self._alias_uri(name, alias), known)

    def bundle_uri(self, name: str, number: int) -> str:
        """Where the bundle of a version lies."""
        return storage.join(self.uri, "models", name, "versions", f"{number:04d}")

    def _alias_uri(self, name: str, alias: str) -> str:
        return storage.join(self.uri, "models", name, "aliases", f"{alias}.json")

    def _files(self, name: str) -> dict[int, set[str]]:
        """Paths of the files that lie under each number."""
        found: dict[int, set[str]] = {}
        for path in visible_files(storage.join(self.uri, "models", name, "versions")):
            number, _, file = path.partition("/")
            if number.isdecimal():
                found.setdefault(int(number), set()).add(file)
        return found

    def _known(self, name: str) -> list[int]:
        """Numbers of the complete versions of a model that exists."""
        check_name("model", name)
        numbers = sorted(n for n, files in self._files(name).items() if VERSION in files)
        if not numbers:
            known = self.models()
            raise RegistryError(
                f"{self.uri}: no model {name!r}{nearest(name, known) or '.'} "
                f"It holds: {', '.join(known) or 'nothing'}. `fetal register BUNDLE --name {name}` "
                "adds it."
            )
        return numbers

    def _claim(self, name: str, content: str) -> int:
        """The number of a content: the one that it has already, else the next free one."""
        claim = dump_record(Claim(content=content, created=now()))
        for _ in range(conditional.ATTEMPTS):
            numbers = self._files(name)
            for number in numbers:
                if self._claimed(name, number) == content:
                    return number
            number = max(numbers, default=0) + 1
            with suppress(ConflictError):
                conditional.write(storage.join(self.bundle_uri(name, number), CLAIM), claim, None)
                return number
        raise ConflictError(f"{name}: other processes took every number. Register again.")

    def _claimed(self, name: str, number: int) -> str | None:
        uri = storage.join(self.bundle_uri(name, number), CLAIM)
        claim = conditional.read(uri)
        return parse_record(Claim, claim.data, uri).content if claim else None


def _publish(uri: str, record: VersionInfo) -> None:
    """Make a version visible, unless another process has made the same one visible."""
    current = conditional.read(uri)
    if current is not None:
        try:
            if parse_record(VersionInfo, current.data, uri).files == record.files:
                return
        except RegistryError:
            logger.warning("%s: damaged; written anew", uri)
    with suppress(ConflictError):
        conditional.write(uri, dump_record(record), current)
