"""`serve deploy deploy/serve.yaml` on a cluster of its own, through Ray Serve's own proxy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from websockets.sync.client import connect

from cohorts import kill
from fetal_core.api_keys import KeyStore
from fetal_core.registry import Registry
from ray_jobs.front import free_port
from ray_jobs.serve_app import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
START_S = 180


def as_deployed() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text())
    return content


def test_the_file_is_valid_and_asks_for_keys() -> None:
    content = as_deployed()
    schema = ServeDeploySchema.model_validate(content)
    (application,) = schema.applications
    assert application.import_path == "ray_jobs.serve_app:build"
    config = ServeConfig.model_validate(application.args)
    assert config.http.require_key
    (deployment,) = application.deployments
    assert deployment.max_ongoing_requests == 2 * config.http.queue_size


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """A cluster with a dashboard, which is what `serve deploy` talks to."""
    gcs, port = free_port(), free_port()
    words = [str(SCRIPTS / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--port={gcs}"]
    words += [f"--dashboard-port={port}", "--object-store-memory=100000000"]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / "ray.log").open("w") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, text=True, start_new_session=True, env=environment
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            kill(process)


def serve_command(dashboard: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / "serve"), *words, "--address", dashboard]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def ask(url: str, data: bytes | None = None, key: str = "") -> tuple[int, Any]:
    headers = {"Content-Type": "image/png", "X-API-Key": key}
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.ray
@pytest.mark.heavy
def test_it_answers_on_a_cluster(
    dashboard: str, registry: Registry, cohort: Path, tmp_path: Path
) -> None:
    keys = KeyStore(str(tmp_path / "keys.json"))
    _, key = keys.create("test")
    content = as_deployed()
    port = content["http_options"]["port"] = free_port()
    content["http_options"]["host"] = "127.0.0.1"
    arguments = content["applications"][0]["args"]
    arguments |= {"registry": registry.uri, "engine": "torch", "threads": 1}
    arguments["http"]["keys_uri"] = str(tmp_path / "keys.json")
    deployment = content["applications"][0]["deployments"][0]
    deployment["ray_actor_options"] = {"num_cpus": 1}
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(content))

    deadline_s = time.monotonic() + START_S
    while (result := serve_command(dashboard, "deploy", str(file))).returncode != 0:
        assert time.monotonic() < deadline_s, result.stdout + result.stderr
        time.sleep(2)
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            if ask(f"{url}/readyz")[0] == 200:
                break
        except (urllib.error.URLError, ConnectionError):
            pass
        assert time.monotonic() < deadline_s, serve_command(dashboard, "status").stdout
        time.sleep(1)
    image = next((cohort / "images").iterdir()).read_bytes()
    assert ask(f"{url}/v1/predict", image)[0] == 401
    status, answer = ask(f"{url}/v1/predict", image, key)
    assert status == 200
    assert answer["model"] == {"name": "planes", "version": "1"}
    with connect(f"ws://127.0.0.1:{port}/v1/stream", additional_headers={"X-API-Key": key}) as live:
        live.send(image)
        found = json.loads(live.recv(timeout=60))
    assert found["type"] == "result"
    assert found["probabilities"] == pytest.approx(
        answer["results"][0]["frames"][0]["probabilities"], abs=1e-4
    )
