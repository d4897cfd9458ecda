"""The whole way with nothing but S3: every path of every command lies in a bucket."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cohorts import run
from fetal_core import storage
from fetal_core.registry import Registry
from juicefs import BUCKET, Gateway, gateway
from s3_servers import s3_server

pytestmark = [pytest.mark.ray, pytest.mark.heavy]

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
resamples = 50
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


@pytest.fixture(scope="module")
def data(server: Gateway, cohort: Path) -> str:
    """The cohort and the configurations in the bucket."""
    uri = storage.join(ROOT, "cohort")
    files = [file for file in cohort.rglob("*") if file.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda file: storage.upload(
                    file, storage.join(uri, file.relative_to(cohort).as_posix())
                ),
                files,
            )
        )
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
        assert b"macro-F1" in answer.read()
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
