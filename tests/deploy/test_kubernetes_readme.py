"""Commands of deploy/kubernetes/README.md that need no cluster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from ray.dashboard.modules.job.cli import submit

from manifests import ALL_PODS, KUBERNETES, OVERLAYS, ROOT, render

README = (KUBERNETES / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_naming_registry_and_bucket_leaves_nothing_to_fill_in(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "deploy/kubernetes")
    (block,) = (block for block in BLOCKS if "xargs sed" in block)
    subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, check=True, timeout=30)
    for overlay in OVERLAYS:
        text = render(tmp_path / "deploy/kubernetes/overlays" / overlay)
        assert "ghcr.io/your-name/fetal-planes:" in text
        assert not re.search("OWNER|BUCKET", text)


def test_every_overlay_that_is_applied_is_there() -> None:
    applied = re.findall(r"kubectl apply -k (\S+)", README)
    assert {"deploy/kubernetes/overlays/cpu", "deploy/kubernetes/overlays/gpu/train"} <= set(
        applied
    )
    assert all((ROOT / path / "kustomization.yaml").is_file() for path in applied if "/" in path)


def test_what_is_asked_of_a_jobs_status_is_there(kuberay_schemas: Path) -> None:
    content = json.loads((kuberay_schemas / "RayJob.json").read_text("utf-8"))
    known = content["openAPIV3Schema"]["properties"]["status"]["properties"]
    asked = set(re.findall(r"\$\(status (\w+)\)", README))
    assert asked == {"rayClusterName", "jobId"}
    assert asked <= known.keys()


def test_the_heads_container_is_named_as_the_readme_says() -> None:
    (name,) = re.findall(r"exec \S+ -c (\S+)", README)
    heads = [pods for pods in ALL_PODS if pods.role == "head"]
    assert {pods.container["name"] for pods in heads} == {name}


def test_ray_knows_the_flags_of_the_job_by_hand() -> None:
    (command,) = re.findall(r"ray job submit (.*?) -- ", README.replace("\\\n", " "))
    known = {option for one in submit.params for option in one.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= known
