"""Alert rules, scrape configuration and dashboard, by Prometheus' own tools and a real endpoint."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import live_server
from data_samples import encode, texture
from fetal_core.api_keys import KeyStore
from ray_jobs.front import free_port
from ray_jobs.http_api import create_app
from ray_jobs.http_settings import HttpSettings
from ray_jobs.inference import Inference
from serving_samples import ConstantEngine, client, constant_model

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/monitoring"
RUNBOOK = (ROOT / "deploy/RUNBOOK.md").read_text()
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
START_S = 30

promtool = pytest.mark.needs(
    shutil.which("promtool"), "promtool is not installed (Debian: prometheus)"
)


def check(*words: str, cwd: Path) -> None:
    done = subprocess.run(
        ["promtool", *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    """All of the rules and of the dashboard, as Prometheus gets them."""
    of_rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    of_panels = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
    return [expr.replace("$instance", ".*") for expr in of_rules + of_panels]


@promtool
def test_the_configuration_and_the_rules_are_valid(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "fetal.key").write_text("fp_key")
    nodes = tmp_path / "nodes.json"  # Ray writes such a file where it runs
    nodes.write_text('[{"labels": {"job": "ray"}, "targets": ["127.0.0.1:8080"]}]')
    configuration = tmp_path / "prometheus.yml"
    path = "/tmp/ray/prom_metrics_service_discovery.json"
    assert path in configuration.read_text()
    configuration.write_text(configuration.read_text().replace(path, str(nodes)))
    check("check", "config", "prometheus.yml", cwd=tmp_path)
    check("check", "rules", "--lint-fatal", "alerts.yml", cwd=tmp_path)


@promtool
@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*_test.yml")))
def test_alerts_come_when_they_should_and_not_otherwise(file: str) -> None:
    check("test", "rules", file, cwd=FOLDER)


def test_every_alert_has_been_seen_firing() -> None:
    fired = {
        expected["alertname"]
        for file in FOLDER.glob("*_test.yml")
        for test in yaml.safe_load(file.read_text())["tests"]
        for expected in test["alert_rule_test"]
        if expected.get("exp_alerts")
    }
    assert fired == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_how_grave_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"]
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert anchor == alert["alert"].lower()
    assert alert["alert"] in headings


def test_what_the_runbook_quotes_of_a_log_is_said() -> None:
    prose = re.sub(r"^ *```.*?^ *```$", "", RUNBOOK, flags=re.S | re.M)
    quoted = re.findall(r'"([^"]+)"', prose)
    source = "".join(file.read_text() for file in (ROOT / "ray_jobs").glob("*.py"))
    assert quoted
    assert [text for text in quoted if text not in source] == []


@promtool
def test_expressions_of_the_dashboard_parse(tmp_path: Path) -> None:
    rules = [
        {"record": f"expression:{number}", "expr": expr.replace("$__rate_interval", "5m")}
        for number, expr in enumerate(expressions())
    ]
    groups = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(groups))
    check("check", "rules", "rules.yml", cwd=tmp_path)


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(panel["title"] for panel in PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_the_dashboard_asks_one_source_that_can_be_chosen() -> None:
    variables = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "datasource"]
    assert [one["name"] for one in variables] == ["datasource"]
    sources = [panel["datasource"] for panel in PANELS if "targets" in panel]
    sources += [target["datasource"] for panel in PANELS for target in panel.get("targets", [])]
    assert sources
    assert {source["uid"] for source in sources} == {"${datasource}"}


@contextmanager
def endpoint(**settings: Any) -> Iterator[tuple[Any, Inference]]:
    """An application with a shadow model; its replica has a name."""
    config = HttpSettings(**settings)
    inference = Inference(config, constant_model(ConstantEngine()))
    inference.set_shadow(constant_model(ConstantEngine(1), version="2"))
    inference.metrics.replica = "host:1"
    try:
        yield create_app(inference, config), inference
    finally:
        inference.close()


def exported(text: str) -> dict[str, set[str]]:
    """Names of all samples, with their labels."""
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def used() -> Iterator[tuple[str, set[str]]]:
    """Metrics of the expressions, with the labels that these select by."""
    for expr in expressions():
        for name, selector in re.findall(r"\b((?:fetal|ray)_[a-z0-9_]+)(?:\{([^}]*)\})?", expr):
            yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))


async def after_a_request() -> str:
    """What ``/metrics`` says once the shadow has seen a frame too."""
    with endpoint() as (app, _):
        async with client(app) as session:
            body, head = encode(texture(1)), {"Content-Type": "image/png"}
            answer = await session.post("/v1/predict", content=body, headers=head)
            assert answer.status_code == 200
            deadline = time.monotonic() + START_S
            while True:
                text = (await session.get("/metrics")).text
                if "fetal_shadow_frames_total{" in text and 'route="/metrics"' in text:
                    return text
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)


def test_metrics_of_the_endpoint_are_really_exported() -> None:
    names = exported(asyncio.run(after_a_request()))
    own = [(name, labels) for name, labels in used() if name.startswith("fetal_")]
    assert len(own) > 20
    for name, labels in own:
        assert name in names, f"{name}: not exported; there are {sorted(names)}"
        assert labels <= names[name] | {"instance"}, f"{name}: {labels - names[name]}"
    assert all("replica" in labels for labels in names.values())


def test_metrics_of_ray_are_in_its_source() -> None:
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0])
    places = [
        folder / "core/src/ray/raylet/raylet",
        folder / "dashboard/modules/reporter/reporter_agent.py",
        folder / "serve/_private/deployment_state.py",
    ]
    source = b"".join(path.read_bytes() for path in places)
    names = {name for name, _ in used() if name.startswith("ray_")}
    assert len(names) > 8
    for name in names:
        registered = name.removeprefix("ray_").removesuffix("_total").encode()
        assert registered in source, name
    assert b"SPILLED" in source


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())["data"]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The real program with our configuration, but for the address and how often it asks."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    words = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*words, "--storage.tsdb.path=data"], cwd=folder, stdout=log, stderr=log
        )
        try:
            yield f"http://{address}/api/v1"
        finally:
            process.terminate()
            process.wait(START_S)


def fetal_target(api: str) -> dict[str, Any]:
    """The endpoint as Prometheus sees it, once it has asked."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            active = ask(f"{api}/targets")["activeTargets"]  # those of Ray too, where it runs
            (target,) = [one for one in active if one["labels"]["job"] == "fetal"]
            if target["health"] != "unknown":
                found: dict[str, Any] = target
                return found
        except (OSError, ValueError):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.needs(shutil.which("prometheus"), "Debian's prometheus is needed")
@pytest.mark.parametrize("right", [True, False])
def test_prometheus_reads_the_endpoint_with_the_right_key(tmp_path: Path, right: bool) -> None:
    keys = tmp_path / "keys.json"
    _, key = KeyStore(str(keys)).create("prometheus")
    folder = tmp_path / "prometheus"
    folder.mkdir()
    (folder / "fetal.key").write_text(key if right else "fp_0_0")
    with (
        endpoint(require_key=True, keys_uri=str(keys)) as (app, _),
        live_server.serving(app) as target,
        prometheus(folder, target) as api,
    ):
        found = fetal_target(api)
        assert found["health"] == ("up" if right else "down"), found
        groups = {group["name"] for group in ask(f"{api}/rules")["groups"]}
        assert groups == {group["name"] for group in RULES["groups"]}
        if right:
            (model,) = ask(f"{api}/query?query=fetal_model_info")["result"]
            assert model["metric"]["version"] == "1"
            assert model["metric"]["replica"] == "host:1"
        else:
            assert "401" in found["lastError"]
