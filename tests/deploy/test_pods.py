"""Head and worker of the manifests, run with the rights and volumes that these give them."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

import pod_sandbox
from manifests import ROOT, RayPods, ray_pods
from pod_sandbox import TOKEN, Pod, once, two_networks
from test_kubernetes_work import serve_config

LACKING = pod_sandbox.missing()
pytestmark = pytest.mark.needs(not LACKING, LACKING)


def described(where: str) -> RayPods:
    (found,) = (pods for pods in ray_pods("cpu") if where in pods.where)
    return found


HEAD, WORKER = described("RayService/planes head"), described("RayService/planes workers")


def test_the_command_runs_where_nothing_but_the_volumes_can_be_written() -> None:
    places = ["/", "/etc", "/usr/local/bin", "/var/tmp", str(ROOT), "/tmp", "/tmp/ray", "/dev/shm"]
    script = (
        f'for place in {" ".join(places)} "$HOME"; do test -w $place && echo $place; done; id -u'
    )
    result = once(WORKER, "bash", "-c", script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["/tmp", "/tmp/ray", "/dev/shm", "/home/fetal", "1000"]
    result = once(WORKER, "fetal", "--help")
    assert result.returncode == 0, result.stderr
    assert "fetal COMMAND" in result.stdout


def test_processes_have_no_rights_beyond_their_users() -> None:
    result = once(HEAD, "cat", "/proc/self/status")
    assert result.returncode == 0, result.stderr
    fields = dict(line.split(":\t", 1) for line in result.stdout.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pod, Pod]]:
    """Both, as soon as the raylets answer the startup probes."""
    logs = tmp_path_factory.mktemp("pods")
    with two_networks() as (first, second):
        running = []
        try:
            for template, network in ((HEAD, first), (WORKER, second)):
                pod = Pod(template, network, first, logs / f"{template.role}.log")
                running.append(pod)
                probe = template.container["startupProbe"]["httpGet"]
                pod.wait_for(probe["port"], probe["path"])
            yield running[0], running[1]
        finally:
            for pod in running:
                pod.kill()


@pytest.mark.heavy
@pytest.mark.ray
def test_health_is_for_everybody_and_the_rest_is_for_the_token(pods: tuple[Pod, Pod]) -> None:
    head, worker = pods
    for template, pod in ((HEAD, head), (WORKER, worker)):
        live = template.container["livenessProbe"]["httpGet"]
        assert pod.ask(live["port"], live["path"]) == 200
        # Ray's agent begins to tell them some time after the node is alive.
        pod.wait_for(int(template.params["metrics-export-port"]), "/metrics")
    ready = HEAD.container["readinessProbe"]["httpGet"]
    head.wait_for(ready["port"], ready["path"])
    assert head.ask(8265, "/api/jobs/") == 401
    assert head.ask(8265, "/api/jobs/", "another") == 403
    assert head.ask(8265, "/api/jobs/", TOKEN) == 200
    nodes = "import ray; ray.init(log_to_driver=False); print(len(ray.nodes()))"
    assert worker.run("python", "-c", nodes).stdout.split()[-1:] == ["2"]
    stranger = worker.run("env", "RAY_AUTH_TOKEN=another", "python", "-c", nodes)
    assert stranger.returncode != 0


REGISTRY = """
import sys
sys.path.insert(0, sys.argv[1])
from builders import toy_bundle
from fetal_core.api_keys import KeyStore
from fetal_core.registry import Registry
toy_bundle().save("/home/fetal/bundle")
registry = Registry("/home/fetal/registry")
registry.register("/home/fetal/bundle", "planes")
registry.promote("planes", 1, "champion")
print(KeyStore("/home/fetal/keys.json").create("prometheus")[1])
"""


@pytest.mark.heavy
@pytest.mark.ray
def test_the_endpoint_becomes_ready_and_shows_its_metrics_to_who_has_a_key(
    pods: tuple[Pod, Pod],
) -> None:
    head, worker = pods
    made = worker.run("python", "-c", REGISTRY, str(ROOT / "tests/unit"))
    assert made.returncode == 0, made.stderr
    key = made.stdout.split()[-1]
    content = serve_config("cpu")
    arguments = content["applications"][0]["args"]
    arguments |= {"registry": "/home/fetal/registry", "engine": "torch"}
    arguments["http"]["keys_uri"] = "/home/fetal/keys.json"
    scaling = content["applications"][0]["deployments"][0]["autoscaling_config"]
    scaling |= {"min_replicas": 1, "max_replicas": 1}
    ready = WORKER.container["readinessProbe"]["httpGet"]
    assert worker.ask(ready["port"], ready["path"]) == 0  # no caller before there is a replica

    write = "import sys; open('/home/fetal/serve.yaml', 'w').write(sys.argv[1])"
    assert head.run("python", "-c", write, json.dumps(content)).returncode == 0
    deploy = ["serve", "deploy", "/home/fetal/serve.yaml", "--address", "http://127.0.0.1:8265"]
    deployed = head.run(*deploy)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    worker.wait_for(ready["port"], ready["path"])
    assert worker.ask(8000, "/metrics") == 401
    assert worker.ask(8000, "/metrics", key) == 200
    end = head.run("serve", "shutdown", "-y", "--address", "http://127.0.0.1:8265")
    assert end.returncode == 0, end.stderr


WORK = """
import time
import ray
@ray.remote(num_cpus=1, max_retries=0)
def work():
    open("/tmp/begun", "w").close()
    time.sleep(8)
    return ray.util.get_node_ip_address()
ray.init(log_to_driver=False)
print(ray.get(work.remote()))
"""


@pytest.mark.heavy
@pytest.mark.ray
def test_a_pod_that_is_told_to_end_first_ends_what_is_under_way(pods: tuple[Pod, Pod]) -> None:
    head, worker = pods
    results: list[subprocess.CompletedProcess[str]] = []
    driver = threading.Thread(target=lambda: results.append(head.run("python", "-c", WORK)))
    driver.start()
    deadline_s = time.monotonic() + 60
    while worker.run("test", "-e", "/tmp/begun").returncode != 0:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    worker.terminate()
    driver.join(60)
    assert results[0].stdout.split()[-1:] == [worker.network.address], results[0].stderr
    worker.wait(WORKER.spec["terminationGracePeriodSeconds"])
    assert "Local node finished draining" in worker.log.read_text()
