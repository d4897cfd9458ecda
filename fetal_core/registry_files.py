"""The files of a registered version: which they are, their hashes, and their verified copy."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fetal_core import storage
from fetal_core.errors import ModelError, StorageError
from fetal_core.registry_records import RegistryError

if TYPE_CHECKING:
    from fetal_core.bundle import BundleInfo

CLAIM = "claim.json"
VERSION = "version.json"
_TEST_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc_macro")
_VALIDATION_FIGURES = ("val_accuracy", "val_macro_f1")


def inspect_bundle(bundle_uri: str) -> tuple[BundleInfo, dict[str, str]]:
    """The description of a bundle and the SHA-256 of each of its files.

    Raises:
        ModelError: not a bundle, or its weights are not those it was saved with.
        StorageError: a file cannot be read.
    """
    # A bundle's description knows the network, which imports torch; only registering needs it.
    from fetal_core.bundle import WEIGHTS, read_info

    info = read_info(bundle_uri)
    files = {
        path: storage.sha256(storage.join(bundle_uri, path)) for path in bundle_files(bundle_uri)
    }
    if files.get(WEIGHTS) != info.hashes.get("weights"):
        raise ModelError(f"{bundle_uri}: {WEIGHTS} is missing, damaged or of another model.")
    return info, files


def headline(info: BundleInfo) -> dict[str, float]:
    """The figures of a bundle by which versions are compared."""
    test, validation = info.metrics.get("test", {}), info.metrics.get("validation", {})
    found = {f"test_{key}": test[key] for key in _TEST_FIGURES if key in test}
    return found | {key: validation[key] for key in _VALIDATION_FIGURES if key in validation}


def copy_file(source: str, target: str, sha256: str) -> None:
    """Copy a file whose SHA-256 is known, unless that very content lies there already.

    Raises:
        RegistryError: it has changed since its hash was taken; nothing is written.
        StorageError: it cannot be read or written, or reads back otherwise than written.
    """
    if storage.is_file(target) and storage.sha256(target) == sha256:
        return
    data = storage.read_bytes(source)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RegistryError(
            f"{source}: changed while it was being registered. "
            "Register the bundle again when nothing writes to it."
        )
    storage.write_bytes(target, data)
    if storage.sha256(target) != sha256:
        raise StorageError(f"{target}: reads back otherwise than it was written. Check the disk.")


def bundle_files(uri: str) -> list[str]:
    """Files of a bundle without the registry's own, as paths in it."""
    return [path for path in visible_files(uri) if path not in (CLAIM, VERSION)]


def visible_files(uri: str) -> list[str]:
    """Files under a folder as paths in it, sorted, without hidden ones; none if it is not there."""
    if not storage.exists(uri):
        return []
    paths = [file.removeprefix(f"{uri}/") for file in storage.list_files(uri)]
    return [path for path in paths if not path.startswith(".") and "/." not in path]
