"""cluster.yaml: Ray's schema, EC2's model, and what the page docs/aws.md promises of it."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
import time
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import botocore.session
import click
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from click.testing import CliRunner
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from ray_jobs.cli import COMMANDS
from ray_jobs.cluster import NODE_GROUPS, NodeGroup, node_groups

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "cluster.yaml").read_text("utf-8")
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)
NODE_TYPES: dict[str, Any] = CONFIG["available_node_types"]
HEAD = CONFIG["head_node_type"]
SECTIONS = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
COMMAND_LINES = [line for section in SECTIONS for line in CONFIG[section]]


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The file with Ray's defaults, which must fit Ray's schema."""
    full: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(full)
    return full


@cache
def run_instances() -> Any:
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")


def faults(node_config: dict[str, Any]) -> str:
    """What EC2's RunInstances does not take; empty where it takes all."""
    parameters = {**node_config, "MinCount": 1, "MaxCount": 1}
    return str(ParamValidator().validate(parameters, run_instances().input_shape).generate_report())


def changed(*path: str, value: object) -> dict[str, Any]:
    """The file with one value replaced."""
    config = copy.deepcopy(CONFIG)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return config


def test_ray_accepts_the_file() -> None:
    assert prepared(CONFIG)["available_node_types"].keys() == NODE_TYPES.keys()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("idle_timeout",), 10),
        (("max_workers",), "six"),
        (("auth", "ssh_usr"), "ubuntu"),
        (("available_node_types", "gpu_worker", "min_worker"), 0),
        (("head_start_ray_commands",), "ray start"),
    ],
)
def test_ray_refuses_what_is_misspelt(path: tuple[str, ...], value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        prepared(changed(*path, value=value))


def test_ray_refuses_a_head_that_is_not_defined() -> None:
    with pytest.raises(ValueError, match="head_node_type"):
        prepared(changed("head_node_type", value="haed"))


@pytest.mark.parametrize("name", NODE_TYPES)
def test_ec2_takes_every_node(name: str) -> None:
    assert faults(NODE_TYPES[name]["node_config"]) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"InstanceTyp": "m6i.xlarge"},
        {"MetadataOptions": {"HttpToken": "required"}},
        {"MetadataOptions": {"HttpPutResponseHopLimit": "1"}},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"Encrypt": True}}]},
        {"InstanceMarketOptions": {"SpotOptions": {"MaxPrize": "1"}}},
        {"IamInstanceProfile": "fetal-planes-worker"},
        {"SecurityGroupIds": "sg-00000000000000000"},
    ],
)
def test_ec2_refuses_what_is_misspelt(change: dict[str, Any]) -> None:
    assert faults(NODE_TYPES["gpu_worker"]["node_config"] | change) != ""


@pytest.mark.parametrize(("name", "value"), [
    ("HttpTokens", "required"), ("MarketType", "spot"), ("VolumeType", "gp3"),
    ("SpotInstanceType", "one-time"), ("InstanceInterruptionBehavior", "terminate"),
    ("HttpEndpoint", "enabled"),
])  # fmt: skip
def test_words_of_the_nodes_are_among_those_ec2_knows(name: str, value: str) -> None:
    assert f"{name}: {value}" in TEXT
    assert value in enumeration(name)


def enumeration(name: str) -> list[str]:
    """The values that EC2 knows for a member of RunInstances' input, wherever it lies."""
    waiting = [run_instances().input_shape]
    while waiting:
        shape = waiting.pop()
        if shape.type_name == "list":
            waiting.append(shape.member)
        for key, member in getattr(shape, "members", {}).items():
            if key == name:
                return list(member.enum)
            waiting.append(member)
    raise KeyError(name)


def test_the_head_is_on_demand_and_without_compute() -> None:
    head = NODE_TYPES[HEAD]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert start_flags("head_start_ray_commands")["--num-cpus"] == "0"


def test_only_workers_with_gpus_are_spot_instances() -> None:
    spot = {
        name
        for name, node in NODE_TYPES.items()
        if node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    }
    assert spot == {name for name, node in NODE_TYPES.items() if node["resources"].get("GPU")}
    assert len(spot) == 1


def test_nothing_runs_and_costs_without_work() -> None:
    assert 0 < CONFIG["idle_timeout_minutes"] <= 15
    assert CONFIG["provider"]["cache_stopped_nodes"] is False
    assert all(node["min_workers"] == 0 for node in NODE_TYPES.values())
    workers = [node for name, node in NODE_TYPES.items() if name != HEAD]
    assert all(0 < node["max_workers"] <= CONFIG["max_workers"] for node in workers)


def test_jobs_are_told_what_the_autoscaler_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = re.findall(rf"{NODE_GROUPS}='(.*?)'", " ".join(CONFIG["head_start_ray_commands"]))
    monkeypatch.setenv(NODE_GROUPS, told)
    workers = [node for name, node in NODE_TYPES.items() if name != HEAD]
    expected = [
        NodeGroup(most=node["max_workers"], resources=node["resources"]) for node in workers
    ]
    assert node_groups() == expected


@pytest.mark.parametrize("name", NODE_TYPES)
def test_metadata_needs_a_session_and_disks_are_encrypted(name: str) -> None:
    node = NODE_TYPES[name]["node_config"]
    assert node["MetadataOptions"]["HttpTokens"] == "required"
    assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert all(disk["Ebs"]["Encrypted"] is True for disk in node["BlockDeviceMappings"])
    assert all(disk["Ebs"]["DeleteOnTermination"] is True for disk in node["BlockDeviceMappings"])


def test_workers_have_a_profile_of_their_own() -> None:
    profiles = {
        name: node["node_config"]["IamInstanceProfile"] for name, node in NODE_TYPES.items()
    }
    head = profiles.pop(HEAD)
    assert head not in profiles.values()
    assert all(profile == {"Name": "fetal-planes-worker"} for profile in profiles.values())


def test_the_dashboard_is_not_public() -> None:
    flags = start_flags("head_start_ray_commands")
    assert flags["--dashboard-host"] == "127.0.0.1"
    assert "--ray-client-server-port" not in flags
    assert "0.0.0.0" not in TEXT
    # Without a group of its own, the launcher makes one that is open to the world.
    assert all(node["node_config"]["SecurityGroupIds"] for node in NODE_TYPES.values())
    assert "security_group" not in CONFIG["provider"]


@pytest.mark.parametrize("section", SECTIONS[1:])
def test_ray_starts_with_its_token_or_not_at_all(section: str) -> None:
    starts = [line for line in CONFIG[section] if re.search(r"ray start|ray_jobs", line)]
    assert starts
    assert all("RAY_AUTH_MODE=token;" in line for line in starts)
    assert CONFIG["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_versions_are_those_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    (ray,) = [pin for pin in pins if pin.name == "ray"]
    assert ray.specifier.contains(version("ray"))
    full = prepared(CONFIG)  # with what Ray adds by itself
    commands = [line for key, lines in full.items() if key.endswith("commands") for line in lines]
    installing = [line for line in commands if "pip install" in line]
    assert installing
    assert all("--constraint ~/fetal-planes/constraints.txt" in line for line in installing)
    assert not [line for line in commands if "http" in line or ".whl" in line]


def test_what_is_copied_is_there_and_is_all_that_the_installation_needs() -> None:
    mounts = {key: value for key, value in CONFIG["file_mounts"].items() if ".ray/" not in key}
    assert all((ROOT / source).exists() for source in mounts.values())
    assert all(key == f"~/fetal-planes/{source}" for key, source in mounts.items())


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_is_a_shell_command(line: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_module_and_command_of_ours_exists() -> None:
    text = " ".join(COMMAND_LINES)
    modules = re.findall(r"-m (ray_jobs\.\w+)", text)
    assert modules
    assert all(find_spec(module) for module in modules)
    assert set(re.findall(r"\bfetal (\w+)", text)) <= set(COMMANDS)


@pytest.mark.parametrize("section", SECTIONS[1:])
def test_ray_start_takes_every_flag(section: str) -> None:
    assert list(start_flags(section)) == [
        flag for flag in start_flags(section) if flag in start_help()
    ]
    start.make_context("start", start_words(section))


def test_ray_start_refuses_a_flag_that_it_does_not_know() -> None:
    with pytest.raises(click.UsageError):
        start.make_context("start", [*start_words("head_start_ray_commands"), "--num-cpu=0"])


def start_help() -> set[str]:
    done = CliRunner().invoke(start, ["--help"])
    return set(re.findall(r"--[a-z][a-z-]+", done.output))


def start_words(section: str) -> list[str]:
    """What follows the one ``ray start`` of a section."""
    (line,) = [line for line in CONFIG[section] if "ray start" in line]
    return shlex.split(line.partition("ray start")[2])


def start_flags(section: str) -> dict[str, str]:
    words = [word.partition("=") for word in start_words(section)]
    return {flag: value for flag, _, value in words}


def test_ending_an_old_watcher_does_not_end_the_shell_that_does_it() -> None:
    (line,) = [line for line in COMMAND_LINES if "pkill" in line]
    pattern = shlex.split(line)[2]
    assert re.search(pattern, "venv/bin/python -m ray_jobs.spot_watcher --address 10.0.0.1:6379")
    assert not re.search(pattern, f"bash --login -c -i 'source ~/.bashrc && ({line})'")


def test_the_watcher_outlives_the_shell_that_starts_it(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nread gate <"$HOME/gate"\necho "$RAY_AUTH_MODE $@"\n')
    python.chmod(0o755)
    os.mkfifo(tmp_path / "gate")
    line = CONFIG["worker_start_ray_commands"][-1]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "10.0.0.1"}
    subprocess.run(["bash", "-c", line], env=environment, check=True, timeout=60)
    (tmp_path / "gate").write_text("go\n")  # waits until the watcher reads
    log = tmp_path / "spot-watcher.log"
    while not log.read_text("utf-8"):
        time.sleep(0.01)
    told = "token -m ray_jobs.spot_watcher --address 10.0.0.1:6379\n"
    assert log.read_text("utf-8") == told
