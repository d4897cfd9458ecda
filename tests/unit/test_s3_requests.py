"""Requests that the stages send: one for each image, together; a few for all the rest."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_samples import write_folder
from fetal_core import shard_files as core
from fetal_core import storage
from fetal_core.audit import audit
from fetal_core.images import ImageLimits
from fetal_core.preprocess import PreprocessConfig
from fetal_core.shard_files import finished, sizes, write_shard
from fetal_core.shards import ShardTask, build_index, plan, read_part
from ray_jobs.blocks import shard_files
from s3_servers import Environ, Server, s3_server

CONFIG = PreprocessConfig(size_px=32)
PATIENTS = 20


@pytest.fixture
def server() -> Iterator[Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def cohort(server: Server, tmp_path: Path) -> str:
    """Two images of each patient in the bucket."""
    folder = write_folder(tmp_path / "cohort", patients=PATIENTS)
    for file in folder.rglob("*.*"):
        storage.upload(file, f"{server.uri}/cohort/{file.relative_to(folder)}")
    return f"{server.uri}/cohort"


def test_requests_of_a_preparation_and_of_reading_it(server: Server, cohort: str) -> None:
    requests: Counter[str] = Counter()

    def count(environ: Environ) -> None:
        listing = "list-type" in environ["QUERY_STRING"]
        requests["LIST" if listing else environ["REQUEST_METHOD"]] += 1

    server.before = count
    images = 2 * PATIENTS
    manifest = audit(cohort, workers=1).raise_on_error()
    assert requests["GET"] <= images + 2  # the table is read twice
    assert requests["LIST"] <= 6
    assert requests["HEAD"] == 0

    requests.clear()
    out = f"{server.uri}/shards"
    tasks: list[ShardTask] = plan(manifest, {"train": manifest.ids}, CONFIG)
    files = {
        task.file: write_shard(task, manifest.root, out, CONFIG, ImageLimits()) for task in tasks
    }
    assert requests == {"GET": images, "PUT": len(tasks)}

    requests.clear()
    index = build_index(manifest, "split", CONFIG, tasks, files)
    assert sizes(out) == {f"{out}/{file.file}": file.bytes for file in files.values()}
    assert shard_files(out, index, ["train"]) == [f"{out}/{file}" for file in files]
    assert sum(table.num_rows for table in read_part(out, index, "train")) == images
    assert requests == {"GET": len(tasks), "LIST": 4}

    assert finished(tasks, out) == files


def test_the_next_images_are_fetched_while_one_is_worked_on(
    server: Server, cohort: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = audit(cohort, workers=1).raise_on_error()
    (task,) = plan(manifest, {"train": manifest.ids}, CONFIG)
    first, limit_s = task.rows[0]["path"], 20
    asked: list[str] = []
    late: list[str] = []
    many_asked, working = threading.Event(), threading.Event()

    def hold(environ: Environ) -> None:
        """Only the first image is answered before it is worked on."""
        if environ["REQUEST_METHOD"] != "GET":
            return
        asked.append(environ["PATH_INFO"])
        if len(asked) >= storage.READ_AHEAD:
            many_asked.set()
        if not environ["PATH_INFO"].endswith(first) and not working.wait(limit_s):
            late.append(environ["PATH_INFO"])

    preprocess = core.preprocess

    def work(*arguments: Any) -> Any:
        if not working.is_set():
            assert many_asked.wait(limit_s), asked
            working.set()
        return preprocess(*arguments)

    server.before = hold
    monkeypatch.setattr(core, "preprocess", work)
    written = write_shard(task, manifest.root, f"{server.uri}/shards", CONFIG, ImageLimits())
    assert (written.rows, late) == (2 * PATIENTS, [])
