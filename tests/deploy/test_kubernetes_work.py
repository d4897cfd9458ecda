"""What the endpoint and the jobs are told to do, by the code that they tell it to."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from manifests import OVERLAYS, ROOT, at, named, ray_pods, size
from ray_jobs.cli import COMMANDS
from ray_jobs.cluster_config import ClusterConfig
from ray_jobs.command import parse_args
from ray_jobs.prepare import PrepareArgs
from ray_jobs.serve_app import ServeConfig
from ray_jobs.train import TrainArgs
from ray_jobs.tune import TuneArgs, _settings

JOBS = [overlay for overlay in OVERLAYS if "/" in overlay]
SERVE_FILE = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text("utf-8"))


def serve_config(overlay: str) -> dict[str, Any]:
    text = named(overlay, "RayService")["spec"]["serveConfigV2"]
    content: dict[str, Any] = yaml.safe_load(text)
    return content


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_ray_serve_and_the_application_accept_the_configuration(overlay: str) -> None:
    (application,) = ServeDeploySchema.model_validate(serve_config(overlay)).applications
    assert ServeConfig.model_validate(application.args).http.require_key


def test_the_endpoint_is_that_of_the_serve_file() -> None:
    assert serve_config("cpu") == SERVE_FILE


def test_the_gpu_endpoint_differs_by_the_gpus_alone() -> None:
    content = serve_config("gpu")
    (application,) = content["applications"]
    (deployment,) = application["deployments"]
    assert application["args"].pop("gpus") == deployment["ray_actor_options"].pop("num_gpus") == 1
    expected = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text("utf-8"))
    assert expected["applications"][0]["args"].pop("gpus") == 0
    assert content == expected


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_every_pod_of_the_endpoint_holds_one_replica(overlay: str) -> None:
    (pods,) = (pods for pods in ray_pods(overlay) if "planes workers" in pods.where)
    (deployment,) = serve_config(overlay)["applications"][0]["deployments"]
    wanted, scaling = deployment["ray_actor_options"], deployment["autoscaling_config"]
    fits = [int(pods.params["num-cpus"]) // wanted["num_cpus"]]
    if "num_gpus" in wanted:
        fits.append(int(pods.params["num-gpus"]) // wanted["num_gpus"])
    assert min(fits) == 1
    assert pods.group["minReplicas"] == scaling["min_replicas"]
    assert pods.group["maxReplicas"] == scaling["max_replicas"]
    free = size(pods.container["resources"]["limits"]["memory"])
    assert wanted["memory"] < free - int(pods.params["object-store-memory"])
    environment = {one["name"]: one["value"] for one in pods.container["env"]}
    drain_s = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert deployment["graceful_shutdown_timeout_s"] < drain_s


@dataclass(frozen=True)
class Entry:
    """An entrypoint as its command reads it."""

    stage: str
    args: Any

    @property
    def cluster(self) -> ClusterConfig:
        cluster: ClusterConfig = self.args.job.cluster
        return cluster


def entry(overlay: str, bucket: str) -> Entry:
    text = named(overlay, "RayJob")["spec"]["entrypoint"].replace("s3://BUCKET", bucket)
    program, stage, *argv = shlex.split(text)
    assert program == "fetal"
    assert stage in COMMANDS
    if stage == "tune":
        return Entry(stage, parse_args(TuneArgs, argv, "fetal tune", base=_settings))
    kinds: dict[str, Any] = {"prepare": PrepareArgs, "train": TrainArgs}
    return Entry(stage, parse_args(kinds[stage], argv, f"fetal {stage}"))


@pytest.mark.parametrize("overlay", JOBS)
def test_entrypoints_are_read_by_their_commands(overlay: str, bucket: str) -> None:
    found = entry(overlay, bucket)
    assert found.stage == overlay.partition("/")[2]
    args = vars(found.args)
    if found.stage == "prepare":
        assert (args["data"], args["out"]) == (f"{bucket}/cohort", f"{bucket}/prepared")
    else:
        assert (args["prepared"], args["runs"]) == (f"{bucket}/prepared", f"{bucket}/runs")


@pytest.mark.parametrize("overlay", [overlay for overlay in JOBS if "prepare" not in overlay])
def test_a_jobs_workers_fit_the_cluster_it_begins_on(overlay: str, bucket: str) -> None:
    spec = named(overlay, "RayJob")["spec"]
    (group,) = at(spec, ("rayClusterSpec", "workerGroupSpecs"))
    cluster = entry(overlay, bucket).cluster
    machine_cpus = int(group["rayStartParams"]["num-cpus"])
    machine_gpus = int(group["rayStartParams"]["num-gpus"])
    assert (cluster.gpu == "always") == (machine_gpus > 0)
    # The driver takes a whole machine's share at worst, and Ray Data one CPU more.
    places = group["minReplicas"] * (machine_cpus // cluster.cpus_per_worker)
    lost = math.ceil((spec["entrypointNumCpus"] + 1) / cluster.cpus_per_worker)
    assert cluster.workers <= places - lost
    if machine_gpus:
        assert cluster.workers <= group["minReplicas"] * machine_gpus


@pytest.mark.parametrize("overlay", JOBS)
def test_jobs_end_and_are_tried_again(overlay: str) -> None:
    spec = named(overlay, "RayJob")["spec"]
    assert spec["submissionMode"] == "HTTPMode"
    assert "submitterPodTemplate" not in spec  # KubeRay refuses it in this mode
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"]


def test_the_readmes_placeholders_are_all_there_are() -> None:
    for file in (ROOT / "deploy/kubernetes").rglob("*.yaml"):
        text = re.sub(r"#.*", "", file.read_text("utf-8"))
        text = text.replace("s3://BUCKET", "").replace("ghcr.io/OWNER", "")
        assert not re.search(r"BUCKET|OWNER|CHANGE|TODO|<[a-z]+>", text), file
