"""``fetal prepare``: audit, split, and uint8 shards written by Ray Data."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import ray
import ray.data
import tyro

from fetal_core import storage
from fetal_core.audit import audit
from fetal_core.config import digest
from fetal_core.errors import DataError, Problem, StaleInputError, StorageError, StoreAwayError
from fetal_core.files import list_images
from fetal_core.labels import list_tables
from fetal_core.manifest import Manifest
from fetal_core.preprocess import PreprocessConfig
from fetal_core.recipe import Recipe
from fetal_core.shard_files import finished, sizes
from fetal_core.shards import (
    ShardFile,
    ShardIndex,
    ShardTask,
    build_index,
    fingerprint,
    plan,
)
from fetal_core.split import Split, check_split, make_split
from ray_jobs import shard_task
from ray_jobs.cluster import connected, jobs_at_once
from ray_jobs.command import parse_args, stage
from ray_jobs.console import progress_bar, say, show_problems
from ray_jobs.job import Job
from ray_jobs.workspace import Prepared

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrepareOutcome:
    """What a preparation did.

    Attributes:
        by_machine: images decoded now by the address of the machine; the others were there from
            an interrupted run.
        wall_s: time of reading, decoding and writing.
        reused: whether all was there already, made from the same inputs.
    """

    prepared: Prepared
    index: ShardIndex
    split: Split
    problems: tuple[Problem, ...]
    by_machine: Mapping[str, int]
    wall_s: float
    reused: bool = False

    @property
    def written(self) -> int:
        """Images decoded now."""
        return sum(self.by_machine.values())


def prepare(
    data: str,
    out: str,
    recipe: Recipe,
    force: bool = False,
    on_audit: Progress | None = None,
    on_shards: Progress | None = None,
) -> PrepareOutcome:
    """Check a cohort, split it by patient and write its shards; continues an interrupted run.

    A whole preparation of unchanged inputs is not made again, unless ``force``.

    Raises:
        DataError: problems of the cohort or images that cannot be read; all of them.
        StaleInputError: ``out`` holds another cohort or other settings, and not ``force``.
    """
    prepared = Prepared(storage.absolute(out))
    inputs = describe_inputs(data, recipe)
    if not force and (made := reuse(prepared, inputs, recipe)) is not None:
        return made
    found = audit(
        data,
        recipe.labels,
        recipe.limits,
        progress=on_audit,
        allow_no_patients=not recipe.split.by_patient,
        use_official_test=recipe.split.use_official_test,
    )
    manifest = found.raise_on_error()
    split = make_split(manifest, recipe.split)
    check_split(split, manifest)
    begin(prepared, manifest, split, recipe.preprocess, inputs, force)
    problems = [*found.problems, *unlearnable(manifest, split)]
    storage.write_json(prepared.audit_uri, [asdict(problem) for problem in problems])
    storage.write_json(prepared.recipe_uri, recipe.model_dump(mode="json"))
    started = time.monotonic()
    index, by_machine = write_shards(
        manifest, split.parts, split.hash, prepared.shards_uri, recipe, on_shards
    )
    wall_s = time.monotonic() - started
    return PrepareOutcome(prepared, index, split, tuple(problems), by_machine, wall_s)


def describe_inputs(data: str, recipe: Recipe) -> dict[str, Any] | None:
    """What a preparation depends on, without reading an image; None if the audit must tell why."""
    root = storage.absolute(data)
    try:
        images = [(f.path, f.size_bytes, f.changed_ns) for f in list_images(root)]
        tables = {uri: storage.sha256(uri) for uri in list_tables(root, recipe.labels)}
    except StorageError:
        return None
    settings = recipe.model_dump(mode="json", include={"labels", "limits", "split", "preprocess"})
    return {"data": root, "images": digest(images), "tables": tables, "settings": settings}


def reuse(
    prepared: Prepared, inputs: Mapping[str, Any] | None, recipe: Recipe
) -> PrepareOutcome | None:
    """A whole preparation of these inputs, with the recipe's settings for later stages; or None."""
    if inputs is None:
        return None
    try:
        plan_made = storage.read_json(_plan_uri(prepared))
        problems = tuple(Problem(**problem) for problem in storage.read_json(prepared.audit_uri))
        _, split, index = prepared.load()
    except (StorageError, StaleInputError):
        return None
    if plan_made != {"fingerprint": index.fingerprint, "inputs": inputs}:
        return None
    there = sizes(prepared.shards_uri)
    for file in (file for group in index.parts.values() for file in group):
        if there.get(storage.join(prepared.shards_uri, file.file)) != file.bytes:
            return None
    storage.write_json(prepared.recipe_uri, recipe.model_dump(mode="json"))
    return PrepareOutcome(prepared, index, split, problems, by_machine={}, wall_s=0.0, reused=True)


def unlearnable(manifest: Manifest, split: Split) -> list[Problem]:
    """Warnings for classes that the training part lacks."""
    label_of = dict(zip(manifest.ids, manifest.labels.tolist(), strict=True))
    present = {label_of[image_id] for image_id in split.parts["train"]}
    remedy = "Images of it will all be mistaken: gather more, or leave the class out"
    return [
        Problem("class-not-trained", name, "no image of it is in training", remedy, None, "warning")
        for label, name in enumerate(manifest.classes)
        if label not in present
    ]


def begin(
    prepared: Prepared,
    manifest: Manifest,
    split: Split,
    config: PreprocessConfig,
    inputs: Mapping[str, Any] | None,
    force: bool,
) -> None:
    """Claim the folder for this manifest, split and preprocessing."""
    wanted = fingerprint(manifest, split.hash, config)
    plan_uri = _plan_uri(prepared)
    if storage.is_file(plan_uri) and storage.read_json(plan_uri)["fingerprint"] != wanted:
        if not force:
            raise StaleInputError(
                f"{prepared.uri}: holds shards of other images, labels, split or preprocessing. "
                "Give --force to replace them, or another --out."
            )
        storage.remove(prepared.shards_uri)
    storage.write_json(plan_uri, {"fingerprint": wanted, "inputs": inputs})
    manifest.save(prepared.manifest_uri)
    split.save(prepared.split_uri)


def _plan_uri(prepared: Prepared) -> str:
    return storage.join(prepared.uri, "plan.json")


def write_shards(
    manifest: Manifest,
    parts: Mapping[str, Sequence[str]],
    split_hash: str,
    out: str,
    recipe: Recipe,
    progress: Progress | None = None,
) -> tuple[ShardIndex, Counter[str]]:
    """Write the shard files that are missing, with Ray Data; then the index.

    Returns:
        The index, and the number of images written now by each machine's address.

    Raises:
        DataError: images that are unreadable or have changed since the audit, all of them.
        StoreAwayError: the store has ceased to answer.
    """
    tasks = plan(manifest, parts, recipe.preprocess)
    files = finished(tasks, out)
    missing = [task for task in tasks if task.file not in files]
    total = sum(len(task.rows) for task in tasks)
    written: Counter[str] = Counter()
    problems: list[Problem] = []
    if progress is not None:
        progress(total - sum(len(task.rows) for task in missing), total)
    for row in _run(missing, manifest.root, out, recipe):
        problems += [Problem(**problem) for problem in json.loads(row["problems"])]
        if problems and problems[-1].kind == shard_task.STORE_AWAY:
            raise StoreAwayError(f"{problems[-1].reason} The finished shards are kept.")
        if row["file"]:
            done = ShardFile(**json.loads(row["file"]))
            files[done.file] = done
            written[row["machine"]] += done.rows
        if progress is not None:
            progress(sum(file.rows for file in files.values()), total)
    if problems:
        raise DataError(
            f"{len(problems)} images cannot be prepared; the finished shards are kept:", problems
        )
    index = build_index(manifest, split_hash, recipe.preprocess, tasks, files)
    index.save(out)
    return index, written


def _run(tasks: list[ShardTask], root: str, out: str, recipe: Recipe) -> Iterator[dict[str, Any]]:
    if not tasks:
        return
    settings = {
        "root": root,
        "out": out,
        "preprocess": recipe.preprocess.model_dump(),
        "limits": recipe.limits.model_dump(),
    }
    rows = [{"task": json.dumps(asdict(task))} for task in tasks]
    with connected():
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        write: Any = shard_task.run
        at_once = ray.data.TaskPoolStrategy(size=jobs_at_once(1))
        yield from dataset.map(write, fn_kwargs=settings, compute=at_once).iter_rows()


@dataclass
class PrepareArgs:
    """Check images and labels, split them by patient, and write them as uint8 shards."""

    data: tyro.conf.Positional[str]
    """Folder with the images and the label table."""
    out: str
    """Folder to write the prepared cohort to."""
    job: Annotated[Job, tyro.conf.arg(name="")]
    config: str | None = None
    """Named configuration, or path of a .toml file; the flags below override it."""
    force: bool = False
    """Replace shards of another cohort or of other settings; audit again in any case."""


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    args = parse_args(PrepareArgs, argv, "fetal prepare")
    show(prepare_shown(args.data, args.out, args.job.recipe(), args.force))


def prepare_shown(data: str, out: str, recipe: Recipe, force: bool = False) -> PrepareOutcome:
    """``prepare`` with progress bars."""
    with progress_bar("audit") as on_audit, progress_bar("shards") as on_shards:
        return prepare(data, out, recipe, force, on_audit, on_shards)


def show(outcome: PrepareOutcome) -> None:
    """Print what a preparation did."""
    show_problems(outcome.problems)
    index = outcome.index
    parts = ", ".join(f"{part} {index.rows(part):,}" for part in outcome.split.parts)
    done = "already prepared" if outcome.reused else "prepared"
    say(f"{done} {outcome.prepared.uri}: {parts} ({', '.join(index.classes)})")
    if outcome.written:
        speed = outcome.written / outcome.wall_s
        say(f"{outcome.written:,} images in {outcome.wall_s:.1f} s at {speed:.0f} images/s")
        if len(outcome.by_machine) > 1:
            each = sorted(outcome.by_machine.items())
            say("by machine: " + ", ".join(f"{address} {images:,}" for address, images in each))
    say(f"training part: mean {index.mean:.4f}, standard deviation {index.std:.4f}")


if __name__ == "__main__":
    sys.exit(stage("prepare"))
