"""Where the files of a prepared cohort and of a run lie, and whether they still fit together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fetal_core import storage
from fetal_core.bundle import MODEL
from fetal_core.code_version import code_differences, code_version
from fetal_core.config import differences, parse
from fetal_core.errors import ConfigError, StaleInputError, StorageError
from fetal_core.manifest import Manifest
from fetal_core.recipe import Recipe
from fetal_core.shards import ShardIndex, fingerprint
from fetal_core.split import Split

RECIPE = "recipe.json"
CHECKPOINTS = "checkpoints"
# Ray Train writes it with the first checkpoint.
_SNAPSHOT = "checkpoint_manager_snapshot.json"
# Settings that decide no number.
_FREE = ("train.checkpoint_steps",)
# Settings that decide what a checkpoint holds.
_LASTING = (
    "model.",
    "optim.name",
    "schedule.name",
    "train.mode",
    "train.ema_decay",
    "train.precision",
)
_FORCE = (
    " `fetal train --force` resumes it all the same; its numbers are then those of no undisturbed "
    "run."
)
_DECIDED_BY_PREPARE = ("labels", "split", "preprocess")


@dataclass(frozen=True)
class Prepared:
    """A prepared cohort: manifest, split and shards in one folder."""

    uri: str

    @property
    def manifest_uri(self) -> str:
        """The manifest's file."""
        return storage.join(self.uri, "manifest.parquet")

    @property
    def split_uri(self) -> str:
        """The split's file."""
        return storage.join(self.uri, "split.json")

    @property
    def shards_uri(self) -> str:
        """Folder of the shards."""
        return storage.join(self.uri, "shards")

    @property
    def recipe_uri(self) -> str:
        """The settings it was prepared with."""
        return storage.join(self.uri, RECIPE)

    @property
    def audit_uri(self) -> str:
        """Findings of the audit that do not forbid training."""
        return storage.join(self.uri, "audit.json")

    def load(self) -> tuple[Manifest, Split, ShardIndex]:
        """Everything, checked to belong together.

        Raises:
            StorageError: something is missing.
            StaleInputError: the shards were made from another manifest or split.
        """
        if not storage.is_file(self.manifest_uri):
            raise StorageError(f"{self.uri}: not a prepared cohort. Run `fetal prepare` first.")
        manifest = Manifest.load(self.manifest_uri)
        split = Split.load(self.split_uri)
        index = ShardIndex.load(self.shards_uri)
        if index.fingerprint != fingerprint(manifest, split.hash, index.preprocess):
            raise StaleInputError(
                f"{self.uri}: the shards were made from another manifest or split than the ones "
                "beside them. Run `fetal prepare --force` again."
            )
        return manifest, split, index

    def check_made_for(self, recipe: Recipe) -> None:
        """Refuse a recipe that asks for other images than lie here.

        Raises:
            ConfigError: labels, split or preprocessing differ; all differences.
        """
        found = differences(storage.read_json(self.recipe_uri), recipe.model_dump(mode="json"))
        changed = [
            f"{key}: prepared with {here!r}, asked for {asked!r}"
            for key, (here, asked) in found.items()
            if key.partition(".")[0] in _DECIDED_BY_PREPARE
        ]
        if changed:
            raise ConfigError(
                f"{self.uri}: was prepared with other settings:\n"
                + "\n".join(f"  - {line}" for line in changed)
                + "\nLeave these settings as they were, or run `fetal prepare` with the new ones "
                "into another --out (or --force)."
            )


@dataclass(frozen=True)
class Run:
    """A training run's folder."""

    uri: str

    @property
    def name(self) -> str:
        """Last part of the path."""
        return storage.name(self.uri)

    @property
    def info_uri(self) -> str:
        """What the run was started with."""
        return storage.join(self.uri, "run.json")

    @property
    def recipe_uri(self) -> str:
        """The settings it was trained with."""
        return storage.join(self.uri, RECIPE)

    @property
    def bundle_uri(self) -> str:
        """The best epoch's model."""
        return storage.join(self.uri, "bundle")

    @property
    def report_uri(self) -> str:
        """The report to read."""
        return storage.join(self.uri, "report.html")

    @property
    def metrics_uri(self) -> str:
        """The test part's numbers."""
        return storage.join(self.uri, "metrics.json")

    @property
    def is_trained(self) -> bool:
        """Whether training has ended and the model is written."""
        return storage.is_file(storage.join(self.bundle_uri, MODEL))

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to resume; a run that failed before may start anew."""
        return storage.is_file(storage.join(self.uri, CHECKPOINTS, _SNAPSHOT))

    def begin(
        self,
        prepared: Prepared,
        recipe: Recipe,
        shards: str,
        force: bool = False,
        check_only: bool = False,
    ) -> list[str]:
        """Record the run's inputs, or check that a resumed run has the same.

        Args:
            prepared: the cohort.
            recipe: all settings.
            shards: fingerprint of the images.
            force: resume in spite of differences; the run's record then names them.
            check_only: leave the record as it is.

        Returns:
            The differences that it is forced over.

        Raises:
            ConfigError: the folder holds a run of another configuration.
            StaleInputError: the shards have changed since the run began, or the code.
        """
        settings = recipe.model_dump(mode="json")
        now: dict[str, Any] = {
            "prepared": storage.absolute(prepared.uri),
            "shards": shards,
            "code": code_version(),
            "forced": [],
        }
        found: list[str] = []
        if storage.is_file(self.info_uri) and (self.has_checkpoint or self.is_trained):
            before = storage.read_json(self.info_uri)
            found = self._differences(before, now, settings, force and not self.is_trained)
            if self.is_trained:
                return []
            now["forced"] = before.get("forced", [])
            if found:
                at = datetime.now(UTC).isoformat(timespec="seconds")
                now["forced"] += [{"at": at, "differences": found}]
        if not check_only:
            storage.write_json(self.recipe_uri, settings)
            storage.write_json(self.info_uri, now)
        return found

    def remove_leftovers(self) -> None:
        """Remove checkpoints that a killed process has begun to write; nothing names them.

        Raises:
            StorageError: they cannot be removed.
        """
        folder = storage.join(self.uri, CHECKPOINTS)
        if not storage.is_dir(folder):
            return
        named: set[str] = set()
        if self.has_checkpoint:
            snapshot = storage.read_json(storage.join(folder, _SNAPSHOT))
            named = {result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]}
        depth = len(folder.split("/"))
        found = {uri.split("/")[depth] for uri in storage.list_files(folder)}
        for name in found - named:
            if name.startswith("checkpoint_") and name != _SNAPSHOT:
                storage.remove(storage.join(folder, name))

    def inputs(self) -> tuple[Prepared, Recipe]:
        """The cohort and the recipe of this run.

        Raises:
            StorageError: this is not a run's folder.
        """
        if not storage.is_file(self.info_uri):
            raise StorageError(f"{self.uri}: not a run. Give the folder `fetal train` printed.")
        info = storage.read_json(self.info_uri)
        recipe = parse(Recipe, storage.read_json(self.recipe_uri), self.recipe_uri)
        return Prepared(info["prepared"]), recipe

    def _differences(
        self, before: dict[str, Any], now: dict[str, Any], settings: dict[str, Any], force: bool
    ) -> list[str]:
        """What differs from the run's beginning, if ``force`` can go over it."""
        hint = "" if self.is_trained else _FORCE
        data = [] if before["shards"] == now["shards"] else ["the shards have changed"]
        if data and not force:
            raise StaleInputError(
                f"{self.uri}: the shards have changed since this run began. "
                f"Choose a new --name.{hint}"
            )
        found = differences(storage.read_json(self.recipe_uri), settings)
        changed = {
            key: f"{key}: {old!r} -> {new!r}"
            for key, (old, new) in found.items()
            if key not in _FREE
        }
        lasting = [line for key, line in changed.items() if key.startswith(_LASTING)]
        if lasting and force:
            raise ConfigError(
                f"{self.uri}: this run's checkpoint is of another network, optimizer or schedule:\n"
                + _listed(lasting)
                + "\n--force does not help here. Choose a new --name."
            )
        if changed and not force:
            raise ConfigError(
                f"{self.uri}: this run began with another configuration:\n"
                + _listed(changed.values())
                + "\nUse the same settings to resume it, or choose a new --name."
                + ("" if lasting else hint)
            )
        # A run from before code was recorded has nothing to compare with.
        recorded = now["code"] if self.is_trained else before.get("code", now["code"])
        code = code_differences(recorded, now["code"])
        if code and not force:
            raise StaleInputError(
                f"{self.uri}: this run began with other code:\n"
                + _listed(code)
                + f"\nUse that code to resume it, or choose a new --name.{hint}"
            )
        return [*data, *changed.values(), *code]


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
