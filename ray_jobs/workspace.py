"""Where the files of a prepared cohort and of a run lie, and whether they still fit together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fetal_core import storage
from fetal_core.bundle import MODEL
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

    def begin(self, prepared: Prepared, recipe: Recipe, shards: str) -> None:
        """Record the run's inputs, or check that a resumed run has the same.

        Raises:
            ConfigError: the folder holds a run of another configuration.
            StaleInputError: the shards have changed since the run began.
        """
        settings = recipe.model_dump(mode="json")
        if storage.is_file(self.info_uri) and (self.has_checkpoint or self.is_trained):
            self._check_same(shards, settings)
            return
        storage.write_json(self.recipe_uri, settings)
        info = {"prepared": storage.absolute(prepared.uri), "shards": shards}
        storage.write_json(self.info_uri, info)

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

    def _check_same(self, shards: str, settings: dict[str, Any]) -> None:
        if storage.read_json(self.info_uri)["shards"] != shards:
            raise StaleInputError(
                f"{self.uri}: the shards have changed since this run began. Choose a new --name."
            )
        found = differences(storage.read_json(self.recipe_uri), settings)
        changed = [f"{key}: {before!r} -> {after!r}" for key, (before, after) in found.items()]
        if changed:
            raise ConfigError(
                f"{self.uri}: this run began with another configuration:\n"
                + "\n".join(f"  - {line}" for line in changed)
                + "\nUse the same settings to resume it, or choose a new --name."
            )
