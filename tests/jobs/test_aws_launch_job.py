"""docs/aws.md as it is written, with Ray's own launcher, against a server that imitates AWS."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

from aws_cli import IMAGE

ROOT = Path(__file__).resolve().parents[2]
JOBS = Path(__file__).resolve().parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/aws.md").read_text("utf-8"), re.DOTALL)
# They need machines behind the addresses.
NOT_HERE = ("ray dashboard", "ray job submit")
REGION = "eu-central-1"


@dataclass
class Account:
    """An AWS account, a checkout and a terminal."""

    folder: Path

    def run(self, *blocks: str) -> None:
        script = "set -euo pipefail\n" + "\n".join(blocks)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder / "checkout",
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def remote(self) -> list[list[str]]:
        lines = (self.folder / "log.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def commands(self) -> list[str]:
        """What was run on the head node."""
        return [words[-1] for words in self.remote() if words[0] == "ssh"]

    def instances(self) -> list[dict[str, Any]]:
        found = boto3.session.Session().client("ec2").describe_instances()["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    folder = tmp_path_factory.mktemp("aws")
    programs = {"ssh": "remote_shell.py", "rsync": "remote_shell.py", "aws": "aws_cli.py"}
    (folder / "bin").mkdir()
    for name, script in programs.items():
        words = f"{sys.executable} {JOBS / script}"
        words += f" {folder} {name}" if name != "aws" else ""
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    checkout = folder / "checkout"
    checkout.mkdir()
    shutil.copy(ROOT / "cluster.yaml", checkout)
    for name in ("fetal_core", "ray_jobs", "deploy", "pyproject.toml", "constraints.txt",
                 "README.md", "LICENSE"):  # fmt: skip
        (checkout / name).symlink_to(ROOT / name)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(folder),
        "TMPDIR": str(folder),  # the launcher keeps what it found out there
        "PATH": os.pathsep.join(path),
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in values.items():
            environment.setenv(name, value)
        yield Account(folder)
    server.stop()


@pytest.mark.heavy
def test_the_page_starts_and_ends_a_cluster_that_nobody_else_can_reach(account: Account) -> None:
    here = [block for block in BLOCKS if not any(word in block for word in NOT_HERE)]
    assert here[-2:] == ["ray up cluster.yaml --yes\n", "ray down cluster.yaml --yes\n"]
    account.run(*here[:-1])
    check_head(account)
    check_network()
    check_remote(account)
    check_workers(account)
    account.run(here[-1])
    assert {instance["State"]["Name"] for instance in account.instances()} == {"terminated"}


def check_head(account: Account) -> None:
    (head,) = account.instances()
    assert (head["InstanceType"], head["ImageId"]) == ("m6i.xlarge", IMAGE)
    assert "InstanceLifecycle" not in head
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/fetal-planes-head")
    assert all(
        volume["Encrypted"]
        for volume in boto3.session.Session().client("ec2").describe_volumes()["Volumes"]
    )
    iam = boto3.session.Session().client("iam")
    names = {
        role: set(iam.list_role_policies(RoleName=role)["PolicyNames"])
        for role in ("fetal-planes-head", "fetal-planes-worker")
    }
    assert names == {"fetal-planes-head": {"files", "workers"}, "fetal-planes-worker": {"files"}}
    files = iam.get_role_policy(RoleName="fetal-planes-worker", PolicyName="files")
    statements = files["PolicyDocument"]["Statement"]
    bucket = "arn:aws:s3:::hospital-ultrasound"
    assert statements[0]["Resource"] == bucket
    assert statements[1]["Resource"] == [f"{bucket}/planes", f"{bucket}/planes/*"]


def check_network() -> None:
    ec2 = boto3.session.Session().client("ec2")
    groups = ec2.describe_security_groups()["SecurityGroups"]
    (ours,) = [group for group in groups if group["GroupName"] != "default"]
    opened = [
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"), source["CidrIp"])
        for rule in ours["IpPermissions"]
        for source in rule["IpRanges"]
    ]
    assert opened == [("tcp", 22, 22, "203.0.113.7/32")]
    members = [
        pair["GroupId"] for rule in ours["IpPermissions"] for pair in rule["UserIdGroupPairs"]
    ]
    assert members == [ours["GroupId"]]


def check_remote(account: Account) -> None:
    copied = {words[-2]: words[-1].partition(":")[2] for words in account.remote()
              if words[0] == "rsync"}  # fmt: skip
    assert copied[f"{account.folder}/.ray/auth_token"] == "~/.ray/auth_token"
    own = {source for source in copied if not source.startswith("/")}
    assert own == {"fetal_core/", "ray_jobs/", "pyproject.toml", "constraints.txt", "README.md",
                   "LICENSE"}  # fmt: skip
    commands = account.commands()
    (install,) = [n for n, command in enumerate(commands) if "pip install" in command]
    (start,) = [n for n, command in enumerate(commands) if "ray start" in command]
    assert install < start
    for words in ("RAY_enable_autoscaler_v2=1", "RAY_AUTH_MODE=token", '{"CPU":0}',
                  "--dashboard-host=127.0.0.1"):  # fmt: skip
        assert words in commands[start].replace("'\"'\"'", "'")


def check_workers(account: Account) -> None:
    """What the autoscaler on the head does with the file that it was given."""
    file = json.loads((account.folder / "head.json").read_text("utf-8"))
    config = AutoscalingConfig(file, skip_content_hash=True)
    token = (account.folder / ".ray" / "auth_token").read_text("utf-8")
    assert token not in json.dumps(file)
    assert file["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "ray_jobs.spot_watcher" in config.get_worker_start_ray_commands()[-1]
    provider = AWSNodeProvider(file["provider"], file["cluster_name"])
    for name, lifecycle in (("gpu_worker", "spot"), ("cpu_worker", None)):
        tags = {"ray-node-type": "worker", "ray-user-node-type": name}
        (created,) = provider.create_node(config.get_cloud_node_config(name), tags, 1)
        (worker,) = [found for found in account.instances() if found["InstanceId"] == created]
        assert worker.get("InstanceLifecycle") == lifecycle
        assert worker["MetadataOptions"]["HttpTokens"] == "required"
        assert worker["IamInstanceProfile"]["Arn"].endswith("/fetal-planes-worker")


@pytest.mark.parametrize("name", ["head", "cpu_worker", "gpu_worker"])
def test_nodes_have_the_processors_that_their_type_has(account: Account, name: str) -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    node = config["available_node_types"][name]
    ec2 = boto3.session.Session().client("ec2")
    types = ec2.describe_instance_types(InstanceTypes=[node["node_config"]["InstanceType"]])
    (found,) = types["InstanceTypes"]
    gpus = sum(gpu["Count"] for gpu in found.get("GpuInfo", {}).get("Gpus", []))
    assert node["resources"].get("GPU", 0) == gpus
    assert node["resources"]["CPU"] in (0, found["VCpuInfo"]["DefaultVCpus"])
    assert found["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"]
