"""What every Ray pod of every overlay keeps to."""

from __future__ import annotations

import re
import tomllib

import pytest

from manifests import ALL_PODS, OVERLAYS, ROOT, RayPods, named, objects, rendered, size

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# What Ray writes to: temporary files, its sessions, its objects, and caches in the home.
WRITTEN = {"/tmp", "/tmp/ray", "/dev/shm", "/home/fetal"}
every_pod = pytest.mark.parametrize("pods", ALL_PODS, ids=lambda pods: pods.where)


def test_every_overlay_has_ray_pods() -> None:
    assert {pods.where.split()[0] for pods in ALL_PODS} == set(OVERLAYS)
    assert len(ALL_PODS) >= 2 * len(OVERLAYS)


@every_pod
def test_pods_cannot_become_root(pods: RayPods) -> None:
    pod, container = pods.spec["securityContext"], pods.container["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["runAsGroup"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for context in (container, pods.cluster["autoscalerOptions"]["securityContext"]):
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not context.get("privileged")
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pods.spec)


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_namespace_refuses_other_pods(overlay: str) -> None:
    labels = named(overlay, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for one in objects(overlay):
        if one["kind"] != "Namespace":
            assert one["metadata"]["namespace"] == named(overlay, "Namespace")["metadata"]["name"]


@every_pod
def test_volumes_cover_what_ray_writes(pods: RayPods) -> None:
    volumes = {volume["name"]: volume for volume in pods.spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pods.container["volumeMounts"]}
    assert set(mounts) == WRITTEN
    for name in mounts.values():
        assert size(volumes[name]["emptyDir"]["sizeLimit"]) > 0
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    # KubeRay shares these with the autoscaler only by these names.
    assert mounts["/tmp/ray"] == "ray-logs"
    assert mounts["/dev/shm"] == "shared-mem"
    autoscaler = pods.cluster["autoscalerOptions"]["volumeMounts"]
    shared = {mount["mountPath"]: mount["name"] for mount in autoscaler}
    assert shared == {path: mounts[path] for path in WRITTEN - {"/dev/shm"}}
    assert re.search(r"^ENV HOME=/home/fetal\b", DOCKERFILE, re.MULTILINE)


@every_pod
def test_resources_are_asked_for_and_hold_what_ray_is_told(pods: RayPods) -> None:
    resources = pods.container["resources"]
    requests, limits = resources["requests"], resources["limits"]
    assert {"cpu", "memory", "ephemeral-storage"} <= set(requests)
    assert set(requests) == set(limits)
    assert all(size(requests[key]) <= size(limits[key]) for key in requests)
    assert requests["memory"] == limits["memory"]  # memory that is not there cannot be taken back
    volumes = {volume["name"]: volume["emptyDir"] for volume in pods.spec["volumes"]}
    shared_bytes = size(volumes["shared-mem"]["sizeLimit"])
    # Ray refuses to start where its store does not fit into /dev/shm.
    assert int(pods.params["object-store-memory"]) < shared_bytes
    assert shared_bytes < size(limits["memory"]) / 2
    disk = sum(size(v["sizeLimit"]) for v in volumes.values() if v.get("medium") != "Memory")
    assert disk <= size(limits["ephemeral-storage"])
    assert int(pods.params["num-gpus"]) == size(limits.get("nvidia.com/gpu", 0))
    if pods.role == "worker":
        assert int(pods.params["num-cpus"]) == size(requests["cpu"])
    else:
        assert pods.params["num-cpus"] == "0"  # jobs must not starve the cluster's control


@every_pod
def test_probes_ask_ports_that_ray_listens_on(pods: RayPods) -> None:
    declared = {port["containerPort"] for port in pods.container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        ask = pods.container[probe]["httpGet"]
        assert ask["path"] in {"/api/local_raylet_healthz", "/api/gcs_healthz", "/-/healthz"}
        assert ask["port"] in declared | {52365}


@every_pod
def test_a_pod_has_time_to_end(pods: RayPods) -> None:
    environment = {one["name"]: one.get("value") for one in pods.container["env"]}
    drain_s = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    hook = pods.container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
    wait_s = float(hook["command"][-1]) if hook else 0
    assert drain_s + wait_s + 10 <= pods.spec["terminationGracePeriodSeconds"]


@every_pod
def test_the_autoscaler_is_the_second(pods: RayPods) -> None:
    assert pods.cluster["enableInTreeAutoscaling"] is True
    assert pods.cluster["autoscalerOptions"]["version"] == "v2"
    assert pods.spec["restartPolicy"] == "Never"  # it replaces pods, and counts them
    if pods.role == "worker":
        group = pods.group
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert pods.spec["automountServiceAccountToken"] is False


@every_pod
def test_versions_are_those_that_are_tested(pods: RayPods) -> None:
    pins = (ROOT / "constraints.txt").read_text("utf-8").split()
    assert f"ray=={pods.cluster['rayVersion']}" in pins
    _, _, tag = pods.container["image"].rpartition(":")
    assert tag == f"{PROJECT['version']}-{pods.where.split()[0].split('/')[0]}"


@every_pod
def test_the_token_is_kuberays_to_hand_out(pods: RayPods) -> None:
    assert pods.cluster["authOptions"] == {"mode": "token", "secretName": "fetal-ray-token"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_in_a_file(overlay: str) -> None:
    assert not any(one["kind"] == "Secret" for one in objects(overlay))
    assert not re.search(r"AKIA|BEGIN [A-Z ]*PRIVATE KEY|auth_token", rendered(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_named_by_version(overlay: str) -> None:
    images = re.findall(r"image: (\S+)", rendered(overlay))
    assert images
    assert not any(image.endswith(":latest") or ":" not in image for image in images)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_accounts_that_pods_use_are_made(overlay: str) -> None:
    made = {one["metadata"]["name"] for one in objects("cpu") if one["kind"] == "ServiceAccount"}
    for pods in ALL_PODS:
        if pods.where.startswith(overlay + " "):
            assert pods.spec["serviceAccountName"] in made
