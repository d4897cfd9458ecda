"""Every kubectl command of the documents, as it stands, up to where it needs a cluster.

kubectl reads flags and files itself before it looks for the cluster, for which nobody answers here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from manifests import ROOT, Object, at, named, render

DOCUMENTS = ("deploy/kubernetes/README.md", "deploy/RUNBOOK.md")
BLOCKS = [
    (document, block)
    for document in DOCUMENTS
    for block in re.findall(
        r"```sh(?: kubernetes)?\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL
    )
    if "kubectl " in block
]
NOBODY = """
apiVersion: v1
kind: Config
clusters: [{name: nobody, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: nobody, context: {cluster: nobody, user: ""}}]
current-context: nobody
"""
# Beside kubectl, blocks call what is not looked at here.
OTHERS = "fetal() { :; }; ray() { :; }\n"
# Where a pod's name would have come from the cluster.
NAMELESS = "error: pod, type/name or --filename must be specified"


def run(folder: Path, block: str) -> list[str]:
    """Complaints of a block's commands in a copy of deploy/ but for the missing cluster."""
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    (folder / "nobody").write_text(NOBODY, "utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", OTHERS + block],
        cwd=folder,
        env=os.environ | {"PATH": path, "KUBECONFIG": str(folder / "nobody")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "refused" in done.stderr
    told = [line for line in done.stderr.splitlines() if not re.match(r"E\d{4} ", line)]
    return [line for line in told if "refused" not in line and line != NAMELESS]


@pytest.mark.parametrize(("document", "block"), BLOCKS)
def test_nothing_but_a_cluster_is_missing(document: str, block: str, tmp_path: Path) -> None:
    assert run(tmp_path, block) == []


def test_a_misspelt_command_is_found(tmp_path: Path) -> None:
    assert run(tmp_path / "flag", "kubectl get pods\nkubectl get pods --outptu name\n")
    assert run(tmp_path / "file", "kubectl get pods\nkubectl apply -k deploy/kubernetes/cpu\n")


def test_the_patch_that_scales_fits_the_cluster() -> None:
    (text,) = re.findall(r"--patch '(.*?)'", (ROOT / DOCUMENTS[1]).read_text("utf-8"))
    (change,) = json.loads(text)
    *owner, key = [int(p) if p.isdigit() else p for p in change["path"].strip("/").split("/")]
    found: Object = at(named("cpu", "RayCluster", "fetal"), tuple(owner))
    assert change["op"] == "replace"
    assert type(found[key]) is type(change["value"])


def test_rolling_back_names_the_image_before_and_nothing_else(tmp_path: Path) -> None:
    (block,) = [block for _, block in BLOCKS if "newTag" in block]
    older = block.replace("0.1.0-cpu", "0.0.9-cpu")
    assert run(tmp_path, older) == []
    overlay = "deploy/kubernetes/overlays/cpu"
    now, before = render(ROOT / overlay), render(tmp_path / overlay)
    assert before == now.replace("fetal-planes:0.1.0-cpu", "fetal-planes:0.0.9-cpu")
    assert before != now
