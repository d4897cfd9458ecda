"""The whole way with nothing but S3: every path of every command lies in a bucket."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cohorts import flags, kill, recipe, run, start, write_textures
from fetal_core import storage
from fetal_core.bundle import Bundle
from fetal_core.registry import Registry
from fetal_core.runlog import training_history
from fetal_core.shards import ShardIndex
from juicefs import BUCKET, Gateway, gateway
from ray_jobs.prepare import prepare
from s3_servers import s3_server

pytestmark = [pytest.mark.ray, pytest.mark.heavy]

LARGE = recipe(preprocess={"size_px": 1024})
ROOT = f"s3://{BUCKET}/team/first"
CONFIG = """
[preprocess]
size_px = 32
[model]
architecture = "squeezenet1_1"
weights = "none"
[train]
epochs = 1
batch_size = 16
precision = "fp32"
[evaluate]
resamples = 100
"""
SEARCH = """
[search]
algorithm = "random"
trials = 2
scheduler = "none"
[search.space."optim.lr"]
loguniform = [1e-3, 1e-2]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("s3") / "store") as running:
        yield running


def copy(folder: Path, uri: str) -> None:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.*")}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.upload(files[name], f"{uri}/{name}"), files))


@pytest.fixture(scope="module")
def data(server: Gateway, cohort: Path) -> str:
    """The cohort and the configurations in the bucket."""
    uri = storage.join(ROOT, "cohort")
    copy(cohort, uri)
    storage.write_bytes(f"{ROOT}/mine.toml", CONFIG.encode())
    storage.write_bytes(f"{ROOT}/search.toml", (CONFIG + SEARCH).encode())
    return uri


def test_every_stage_runs_in_a_bucket(data: str, tmp_path: Path) -> None:
    cwd = tmp_path / "empty"
    cwd.mkdir()

    def fetal(*words: str) -> str:
        code, output = run(words[0], *words[1:], cwd=cwd)
        assert code == 0, output
        return output

    prepared, runs = f"{ROOT}/prepared", f"{ROOT}/runs"
    fetal("audit", data, "--out", f"{ROOT}/found")
    fetal("prepare", data, "--out", prepared, "--config", f"{ROOT}/mine.toml")
    assert "already prepared" in fetal(
        "prepare", data, "--out", prepared, "--config", f"{ROOT}/mine.toml"
    )
    fetal("train", prepared, "--runs", runs, "--name", "one")
    fetal("evaluate", f"{runs}/one")
    lines = fetal("predict", f"{runs}/one/bundle", f"{data}/images", "--json").splitlines()
    assert len([line for line in lines if line.startswith("{")]) == 60
    fetal("tune", prepared, "--runs", runs, "--name", "sweep", "--config", f"{ROOT}/search.toml")
    page = fetal("link", f"{runs}/one/report.html", "--hours", "1").strip()
    with urllib.request.urlopen(page) as answer:
        assert answer.headers["Content-Type"].startswith("text/html")
        assert answer.read() == storage.read_bytes(f"{runs}/one/report.html")
    # The gateway overwrites in spite of If-None-Match: refused, since changes could be lost.
    register = ("register", f"{runs}/one/bundle", "--name", "planes")
    code, output = run(*register, "--registry", f"{ROOT}/registry", cwd=cwd)
    assert (code, "conditional writes" in output) == (2, True)
    bundle = {
        uri.removeprefix(f"{runs}/one/"): storage.read_bytes(uri)
        for uri in storage.list_files(f"{runs}/one/bundle")
    }
    assert list(cwd.iterdir()) == []
    found = {uri.removeprefix(f"{ROOT}/") for uri in storage.list_files(ROOT)}
    assert found >= {
        "found/audit.json",
        "prepared/shards/index.json",
        "runs/one/bundle/model.json",
        "runs/one/metrics.jsonl",
        "runs/one/report.html",
        "runs/sweep/best/bundle/model.json",
        "runs/sweep/sweep.html",
    }
    with s3_server() as conditional:
        for path, content in bundle.items():
            storage.write_bytes(f"{conditional.uri}/one/{path}", content)
        registry = ("--registry", f"{conditional.uri}/registry")
        fetal("register", f"{conditional.uri}/one/bundle", "--name", "planes", *registry)
        fetal("promote", "planes", "1", "--alias", "champion", *registry)
        assert Registry(registry[1]).aliases("planes") == {"champion": 1}
    assert list(cwd.iterdir()) == []


def test_a_store_that_is_killed_is_waited_for_or_given_up_and_resumed(
    server: Gateway, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_textures(tmp_path / "data", patients=24, views=6, height=700, width=900)
    root = f"s3://{BUCKET}/killed"
    copy(local, f"{root}/data")
    out, runs = f"{root}/prepared", f"{root}/runs"
    command = ("prepare", f"{root}/data", "--out", out, *flags(LARGE))

    monkeypatch.setenv("FETAL_STORAGE_RETRY_S", "1")
    code, output = kill_store_when(lambda: shards(out) > 1, server, None, *command, cwd=tmp_path)
    assert code == 2, output
    assert "does not answer" in output
    assert "Traceback" not in output
    server.start()
    kept = shards(out)
    assert 1 < kept < 9
    assert not storage.exists(f"{out}/shards/index.json")

    monkeypatch.setenv("FETAL_STORAGE_RETRY_S", "60")
    code, output = kill_store_when(lambda: shards(out) > kept, server, 3.0, *command, cwd=tmp_path)
    assert code == 0, output
    whole = prepare(str(local), str(tmp_path / "whole"), LARGE).index
    assert ShardIndex.load(f"{out}/shards") == whole

    small = recipe(train={"epochs": 3}, preprocess={"size_px": 32})
    code, output = run(
        "prepare", f"{root}/data", "--out", f"{root}/small", *flags(small), cwd=tmp_path
    )
    assert code == 0, output
    code, output = kill_store_when(
        lambda: storage.exists(f"{runs}/run/metrics.jsonl"),
        server,
        3.0,
        *("train", f"{root}/small", "--runs", runs),
        cwd=tmp_path,
    )
    assert code == 0, output
    assert len(training_history(f"{runs}/run")) == 3
    Bundle.load(f"{runs}/run/bundle")


def shards(out: str) -> int:
    """Finished shard files."""
    folder = f"{out}/shards"
    found = storage.list_files(folder) if storage.is_dir(folder) else []
    return len([uri for uri in found if uri.endswith(".parquet")])


def kill_store_when(
    ready: Callable[[], bool],
    server: Gateway,
    away_s: float | None,
    *command: str,
    cwd: Path,
) -> tuple[int, str]:
    """Exit code and output of a command whose store is killed, and comes back or does not."""
    process = start(*command, cwd=cwd)
    try:
        while not ready():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        server.kill()
        if away_s is not None:
            time.sleep(away_s)
            server.start()
        output, _ = process.communicate(timeout=240)
    finally:
        kill(process)
    return process.returncode, output
