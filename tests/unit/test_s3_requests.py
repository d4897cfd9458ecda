"""How many requests the stages send: one for each image, a few for all the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_samples import write_folder
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


def test_requests_of_a_preparation_and_of_reading_it(server: Server, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "cohort", patients=PATIENTS)
    for file in folder.rglob("*.*"):
        storage.upload(file, f"{server.uri}/cohort/{file.relative_to(folder)}")
    requests: Counter[str] = Counter()

    def count(environ: Environ) -> None:
        listing = "list-type" in environ["QUERY_STRING"]
        requests["LIST" if listing else environ["REQUEST_METHOD"]] += 1

    server.before = count
    images = 2 * PATIENTS
    manifest = audit(f"{server.uri}/cohort", workers=1).raise_on_error()
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
