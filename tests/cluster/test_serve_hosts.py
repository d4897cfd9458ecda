"""`serve deploy deploy/serve.yaml` on two hosts, one of which is lost under load."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from clusters import Cluster, wait_until
from hosts import ROOT, Host

pytestmark = [pytest.mark.cluster, pytest.mark.heavy]

CLIENTS = 3
ROUNDS = 25


@dataclass
class Service:
    """The endpoint, as clients on the network see it."""

    cluster: Cluster
    key: str
    image: bytes
    failures: list[str] = field(default_factory=list)

    def ask(self, host: Host, path: str, body: bytes | None = None) -> tuple[int, str]:
        """Status and answer; 0 where there was none."""
        request = urllib.request.Request(f"http://{host.address}:8000{path}", body)
        request.add_header("X-API-Key", self.key)
        request.add_header("Content-Type", "image/png")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def answered(self, host: Host) -> float:
        """Images that the replica has named that this host's proxy prefers."""
        status, text = self.ask(host, "/metrics")
        assert status == 200, text
        pattern = r'fetal_requests_total\{[^}]*route="/v1/predict",status="200"\} (\S+)'
        return sum(map(float, re.findall(pattern, text)))

    def predict(self, hosts: list[Host]) -> None:
        """Ask until the image has been named; a host that fails is the last to be asked again."""
        for _ in range(10):
            status, text = self.ask(hosts[0], "/v1/predict", self.image)
            if status == 200:
                assert '"plane"' in text
                return
            self.failures.append(f"{hosts[0].name} {status} {text[:200]}")
            hosts.append(hosts.pop(0))
        raise AssertionError(f"{self.failures}\n{logs(hosts)}")


@pytest.fixture
def service(cluster: Cluster, trained: str, cohort: Path) -> Iterator[Service]:
    head, worker = cluster.size(2)
    code, said = head.run("fetal", "key", "create", "test", "--keys", "keys/keys.json")
    assert code == 0, said
    keys = cluster.store.put(head.folder / "home/keys", "keys") + "/keys.json"
    content = yaml.safe_dump(deployment(f"s3://cohort/{trained}/bundle", keys))
    (head.folder / "home/serve.yaml").write_text(content)
    address = f"http://{head.address}:8265"
    code, output = head.run("serve", "deploy", "serve.yaml", "--address", address)
    assert code == 0, output
    image = next((cohort / "images").iterdir()).read_bytes()
    found = Service(cluster, max(said.split(), key=len), image)
    with cluster.network.switch.entered():
        for host in (head, worker):
            wait_until(lambda host=host: found.ask(host, "/readyz")[0] == 200)
        wait_until(lambda: all(replicas(host) == 1 for host in (head, worker)))
    yield found
    assert head.run("serve", "shutdown", "-y", "--address", address)[0] == 0


def deployment(bundle: str, keys: str) -> dict[str, object]:
    """deploy/serve.yaml for a bundle and machines of two CPUs.

    Not for a registry: the store here cannot create conditionally, which a registry needs.
    """
    content = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text().replace("BUCKET", "cohort"))
    (application,) = content["applications"]
    application["args"] |= {"model": bundle, "engine": "torch", "threads": 1}
    application["args"]["http"]["keys_uri"] = keys
    (planes,) = application["deployments"]
    planes["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    planes["ray_actor_options"] = {"num_cpus": 2}
    found: dict[str, object] = content
    return found


def logs(hosts: list[Host]) -> str:
    """The ends of what the replicas have written."""
    files = [file for host in hosts for file in host.folder.glob("ray/session_2*/logs/worker*.err")]
    return "\n".join(f"{file.name}: {file.read_text()[-3000:]}" for file in files if file.is_file())


def replicas(host: Host) -> int:
    return sum("ServeReplica:planes" in line for line in host.processes())


def test_both_hosts_answer_and_one_may_be_lost(service: Service) -> None:
    head, worker = (host for host in service.cluster.network.hosts if host.alive)
    with service.cluster.network.switch.entered():
        for host in (head, worker) * 5:
            service.predict([host])
        # Each host's proxy prefers the replica beside it, but need not take it, nor for metrics.
        for _ in range(10):
            answered = [service.answered(host) for host in (head, worker)]
            if sum(answered) == 10:
                break
        assert sum(answered) == 10, answered
        assert min(answered) >= 1, answered
        assert not service.failures

    under_way = threading.Event()

    def client() -> None:
        # As a load balancer does, it leaves a host that has failed.
        hosts = [worker, head]
        with service.cluster.network.switch.entered():
            for asked in range(ROUNDS):
                service.predict(hosts)
                if asked == 2:
                    under_way.set()

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client) for _ in range(CLIENTS)]
        assert under_way.wait(60)
        worker.kill()
        for done in clients:
            done.result()
    # Nothing but what the lost host had under way has failed, each once.
    assert len(service.failures) <= CLIENTS, service.failures
    assert all(failure.startswith(worker.name) for failure in service.failures)
