"""``fetal export``: a faster engine for a bundle, measured against the model before it is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from fetal_core import storage
from fetal_core.bundle import read_info
from fetal_core.engine import EngineName
from fetal_core.errors import ConfigError, StaleInputError
from fetal_core.export import ExportConfig, ExportResult, OnProgress, export
from fetal_core.registry_files import VERSION
from fetal_core.rows import RowStore
from fetal_core.shards import ShardIndex, read_part
from ray_jobs.command import parse_args, stage
from ray_jobs.console import progress_bar, say
from ray_jobs.workspace import Prepared, Run


def export_bundle(
    bundle_uri: str,
    engine: EngineName,
    prepared_uri: str | None = None,
    config: ExportConfig | None = None,
    on_progress: OnProgress = lambda step, done, total: None,
) -> ExportResult:
    """Export an engine, with the cohort that the bundle was trained on.

    Args:
        bundle_uri: folder of the bundle.
        engine: to export.
        prepared_uri: folder of the cohort; None for the one that the run around the bundle names.
        config: limits and settings.
        on_progress: called with (step, done, total).

    Raises:
        ExportError: the engine does not answer as the model does; nothing was written.
        ConfigError: the cohort is not known, or the software to convert is missing.
        StorageError: the cohort is gone.
        StaleInputError: the cohort is not the one the model was trained on.
        ModelError: not a bundle, or it is damaged.
    """
    bundle_uri = storage.absolute(bundle_uri)
    if storage.is_file(storage.join(bundle_uri, VERSION)):
        raise ConfigError(
            f"{bundle_uri}: a registered version, which never changes. Export into the bundle it "
            "was registered from, then `fetal register` that: it becomes the next version."
        )
    info = read_info(bundle_uri)
    prepared = Prepared(prepared_uri) if prepared_uri else _cohort(bundle_uri)
    _, _, index = prepared.load()
    if info.hashes.get("shards") != index.fingerprint:
        raise StaleInputError(
            f"{bundle_uri}: its model was trained on other shards than {prepared.uri} holds. "
            "Name the cohort it was trained on by --prepared."
        )
    train, val = (_rows(prepared, index, part) for part in ("train", "val"))
    return export(bundle_uri, engine, train, val, config, on_progress)


def _cohort(bundle_uri: str) -> Prepared:
    run = Run(bundle_uri.rpartition("/")[0])
    if not storage.is_file(run.info_uri):
        raise ConfigError(
            f"{bundle_uri}: no run lies around this bundle to tell its cohort. "
            "Name the folder `fetal prepare` wrote by --prepared."
        )
    return run.inputs()[0]


def _rows(prepared: Prepared, index: ShardIndex, part: str) -> RowStore:
    return RowStore(read_part(prepared.shards_uri, index, part), index.preprocess.size_px)


@dataclass
class ExportArgs:
    """Export a faster engine into a bundle; refused unless it answers as the model does."""

    bundle: tyro.conf.Positional[str]
    """Model bundle, as `fetal train` wrote it."""
    engine: EngineName = "openvino-int8"
    """8-bit integers, floating point, or torch in the number format of --precision."""
    prepared: str | None = None
    """Cohort that it was trained on; by default the one that the bundle's run names."""
    config: Annotated[ExportConfig, tyro.conf.arg(name="")] = field(default_factory=ExportConfig)


class StepView(ExitStack):
    """A line for each step as it begins, and a bar while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self._step = ""
        self._update: Callable[[int, int], None] = lambda done, total: None

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show how far a step has come."""
        if step != self._step:
            self.close()
            say(step)
            self._step, self._update = step, self.enter_context(progress_bar(step))
        self._update(done, total)


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(ExportArgs, argv, "fetal export")
    with StepView() as view:
        result = export_bundle(args.bundle, args.engine, args.prepared, args.config, view)
    show(result)


def show(result: ExportResult) -> None:
    """Print what was measured and where the engine is."""
    for method, reached in result.refused.items():
        say(f"refused {method}: {reached}")
    found, speed, fp32 = result.agreement, result.speed, result.speed_fp32
    say(f"{result.engine}{f' ({result.method})' if result.method else ''}: {found}")
    say(
        f"  probabilities differ by {found.probability_difference_mean:.4f} on average, "
        f"{found.probability_difference_max:.4f} at most"
    )
    say(
        f"  {speed.latency_ms:.1f} ms an image, {speed.images_per_s:.1f} images/s in batches: "
        f"{speed.images_per_s / fp32.images_per_s:.1f} x torch in float32"
    )
    say(f"engine: {result.uri}")


if __name__ == "__main__":
    sys.exit(stage("export"))
