"""The endpoint on Ray Serve: answers like `fetal predict`, follows its alias, stops cleanly."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from cohorts import end_group, kill, run, start
from fetal_core.bundle import Bundle
from fetal_core.predict import Predictor
from fetal_core.registry import Registry
from ray_jobs.front import FrontConfig, free_port
from ray_jobs.serve import serving
from ray_jobs.serve_app import ServeConfig
from ray_jobs.train import TrainOutcome

pytestmark = pytest.mark.ray


def get(url: str, data: bytes | None = None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/octet-stream"} if data is not None else {}
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        found: str = answer.read().decode()
        return found


@pytest.fixture(scope="module")
def address(cluster: None, registry: Registry) -> Iterator[str]:
    config = ServeConfig(
        model="planes@champion",
        shadow="planes@2",
        registry=registry.uri,
        engine="torch",
        threads=1,
    )
    with serving(config, FrontConfig(port=free_port())) as found:
        yield found


def test_answers_are_those_of_fetal_predict(address: str, registry: Registry, cohort: Path) -> None:
    _, uri = registry.resolve("planes", 1)
    predictor = Predictor(Bundle.load(uri))
    for file in sorted((cohort / "images").iterdir())[:5]:
        data = file.read_bytes()
        status, found = get(f"{address}/v1/predict", data)
        assert status == 200, found
        (frame,) = found["results"][0]["frames"]
        (expected,) = predictor.predict_bytes(data)
        assert frame["plane"] == expected.plane
        assert frame["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
        assert found["model"] == {"name": "planes", "version": "1"}


def test_the_shadow_gets_a_copy_of_the_frames(address: str, cohort: Path) -> None:
    assert get(f"{address}/v1/predict", next((cohort / "images").iterdir()).read_bytes())[0] == 200
    deadline = time.monotonic() + 30
    while 'fetal_shadow_frames_total{outcome="agrees",replica="' not in text(f"{address}/metrics"):
        assert time.monotonic() < deadline, text(f"{address}/metrics")
        time.sleep(0.1)


def test_state_page_and_errors(address: str) -> None:
    assert get(f"{address}/readyz")[0] == 200
    status, found = get(f"{address}/v1/predict", b"not an image")
    assert status == 400
    assert found["type"].startswith("urn:fetal:problem:")
    with urllib.request.urlopen(address, timeout=30) as answer:
        page = answer.read().decode()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "Research use only" in page


def test_a_promoted_version_serves_without_a_failed_request(
    address: str, registry: Registry, cohort: Path
) -> None:
    data = next((cohort / "images").iterdir()).read_bytes()
    answers: list[tuple[int, Any]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(get(f"{address}/v1/predict", data))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for move in (
            lambda: registry.promote("planes", 2, "champion"),
            lambda: registry.rollback("planes", "champion"),
        ):
            before = answers[-1][1]["model"]["version"] if answers else "1"
            move()
            deadline = time.monotonic() + 60
            while get(f"{address}/v1/model")[1]["version"] == before:
                assert time.monotonic() < deadline, "the alias was not followed"
                time.sleep(0.2)
            time.sleep(1)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert {status for status, _ in answers} == {200}
    versions = [answer["model"]["version"] for _, answer in answers]
    assert {"1", "2"} <= set(versions)
    sure = {
        v: max(a["results"][0]["frames"][0]["probabilities"].values())
        for v, (_, a) in zip(versions, answers, strict=True)
    }
    assert sure["2"] < sure["1"]


def told(message: str) -> bool:
    """Whether a process of Ray's has logged it."""
    folder = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
    logs = folder / ray.get_runtime_context().get_session_name() / "logs"
    files = [*logs.glob("worker-*.err"), *logs.glob("serve/*.log")]
    return any(message in file.read_text(errors="replace") for file in files)


def test_a_version_that_cannot_be_used_is_passed_over(
    address: str, registry: Registry, trained: TrainOutcome, tmp_path: Path, cohort: Path
) -> None:
    broken = Bundle.load(trained.run.bundle_uri)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    broken.save(str(tmp_path / "broken"))
    version = registry.register(str(tmp_path / "broken"), "planes")
    serving_now = get(f"{address}/v1/model")[1]["version"]
    registry.promote("planes", version, "champion")
    refusal = f"{registry.bundle_uri('planes', version)}: the model does not give one finite score"
    try:
        deadline = time.monotonic() + 60
        while not told(refusal):
            assert time.monotonic() < deadline, "no replica has looked at it"
            time.sleep(0.2)
        data = next((cohort / "images").iterdir()).read_bytes()
        status, found = get(f"{address}/v1/predict", data)
        assert (status, found["model"]["version"]) == (200, serving_now)
    finally:
        registry.rollback("planes", "champion")


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_stops(
    trained: TrainOutcome, cohort: Path, tmp_path: Path, number: int
) -> None:
    """The signal goes to all its processes, as from a terminal or `timeout`."""
    port = free_port()
    process = start("serve", trained.run.bundle_uri, "--port", str(port), cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            try:
                if get(f"http://127.0.0.1:{port}/readyz")[0] == 200:
                    break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        data = next((cohort / "images").iterdir()).read_bytes()
        assert get(f"http://127.0.0.1:{port}/v1/predict", data)[0] == 200
        output = end_group(process, number)
    finally:
        kill(process)
    assert process.returncode == 0, output
    assert "stopped" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing",), "neither a model bundle nor"),
        (("--host", "0.0.0.0"), "Give --keys FILE"),
        (("--replicas", "0"), "replicas"),
        (("--replicas", "500"), "--replicas 500: needs CPU 500"),
        (("--port", "99999"), "port"),
        (("--keys", "typo.json"), "--keys typo.json: no such file"),
        (("--tls", "nothing.pem"), "nothing.pem: cannot be read"),
    ],
)
def test_a_wrong_command_is_told(
    trained: TrainOutcome, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    model = () if words[0] == "nothing" else (trained.run.bundle_uri,)
    code, output = run("serve", *model, *words, cwd=tmp_path)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
