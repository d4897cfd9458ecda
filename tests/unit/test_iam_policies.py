"""The policies in deploy/aws allow what this software does, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from fetal_core import conditional, storage
from fetal_core.errors import StorageError
from fetal_core.objects import PART_BYTES
from fetal_core.registry import Registry
from iam_policies import ACCOUNT, DEPLOYMENT, GuardedServer, allows, load
from registry_samples import write_bundle
from s3_servers import s3_server

PREFIX = "fetal/planes"
STORAGE_POLICY = "iam-policy.json"
HEAD_POLICY = "iam-policy-head.json"
INSTANCE = f"arn:aws:ec2:eu-central-1:{ACCOUNT}:instance/i-0fe7a1"
OURS = {"aws:ResourceTag/ray-cluster-name": "fetal-planes"}
# Only after a failed upload, which a server on this machine does not have.
ON_FAILURE = {"s3:AbortMultipartUpload"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedServer]:
    with s3_server(GuardedServer()) as server:
        assert isinstance(server, GuardedServer)
        bucket = server.uri.removeprefix("s3://")
        boto3.session.Session().client("s3").put_object(
            Bucket=bucket, Key="other/secret", Body=b"secret"
        )
        boto3.session.Session().client("s3").put_object(
            Bucket=bucket, Key=f"{PREFIX}-2/secret", Body=b"secret"
        )
        server.policy = load(STORAGE_POLICY, BUCKET=bucket, PREFIX=PREFIX)
        yield server


def use_files(root: str) -> None:
    """Everything that the storage is used for, large and small."""
    large = b"x" * (PART_BYTES + 1)  # in parts
    assert not storage.exists(root)
    storage.write_json(storage.join(root, "a/recipe.json"), {"seed": 1})
    storage.write_bytes(storage.join(root, "a/shards/0.parquet"), large)
    assert storage.read_bytes(storage.join(root, "a/shards/0.parquet")) == large
    assert storage.is_dir(storage.join(root, "a"))
    assert storage.size(storage.join(root, "a/none")) is None
    assert len(list(storage.list_files(root))) == 2
    storage.remove(storage.join(root, "a/recipe.json"))
    storage.remove(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "a"))


def use_registry(root: str, bundle: str) -> None:
    registry = Registry(storage.join(root, "registry"))
    number = registry.register(bundle, "planes")
    registry.promote("planes", number, "champion")
    assert registry.resolve("planes", "champion")[0] == number
    assert registry.models() == ["planes"]


def use_keys(root: str) -> None:
    uri = storage.join(root, "keys.json")
    conditional.update(uri, lambda old: (old or b"") + b"1")
    assert conditional.update(uri, lambda old: (old or b"") + b"2") == b"12"


def test_storage_registry_and_keys_work_under_the_prefix(
    guarded: GuardedServer, tmp_path: Path
) -> None:
    root = storage.join(guarded.uri, PREFIX)
    use_files(root)
    use_registry(root, write_bundle(str(tmp_path / "bundle")))
    use_keys(root)
    assert guarded.refused == set()
    used = {action for action, _, _ in guarded.used}
    assert guarded.policy is not None
    granted = {
        action
        for statement in guarded.policy["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str)
                       else statement["Action"])
    }  # fmt: skip
    assert used <= granted
    assert granted - used <= ON_FAILURE


@pytest.mark.parametrize(
    "attempt",
    [
        lambda root: storage.read_bytes(f"{root}/other/secret"),
        lambda root: storage.read_bytes(f"{root}/{PREFIX}-2/secret"),
        lambda root: storage.write_bytes(f"{root}/other/new", b"1"),
        lambda root: storage.write_bytes(f"{root}/fetal/new", b"1"),
        lambda root: storage.exists(f"{root}/other/none"),
        lambda root: storage.remove(f"{root}/other/secret"),
        lambda root: list(storage.list_files(root)),
        lambda root: list(storage.list_files(f"{root}/other")),
        lambda root: list(storage.list_files(f"{root}/{PREFIX}-2")),
        lambda root: conditional.read(f"{root}/other/secret"),
        lambda root: conditional.write(f"{root}/other/new", b"1", None),
    ],
)
def test_nothing_outside_the_prefix_can_be_reached(
    guarded: GuardedServer, attempt: Callable[[str], object]
) -> None:
    with pytest.raises(StorageError):
        attempt(guarded.uri)
    assert guarded.refused
    guarded.refused.clear()


@pytest.mark.parametrize(
    "action",
    ["s3:ListAllMyBuckets", "s3:DeleteBucket", "s3:PutBucketPolicy", "s3:PutObjectAcl",
     "s3:PutLifecycleConfiguration", "s3:GetObjectVersion", "s3:DeleteObjectVersion"],
)  # fmt: skip
def test_the_bucket_itself_and_old_versions_are_out_of_reach(action: str) -> None:
    policy = load(STORAGE_POLICY, BUCKET="cohort", PREFIX=PREFIX)
    for resource in ("arn:aws:s3:::cohort", f"arn:aws:s3:::cohort/{PREFIX}/a"):
        assert not allows(policy, action, resource)


def test_files_of_a_bucket_of_a_similar_name_are_out_of_reach() -> None:
    policy = load(STORAGE_POLICY, BUCKET="cohort", PREFIX=PREFIX)
    assert allows(policy, "s3:GetObject", f"arn:aws:s3:::cohort/{PREFIX}/a")
    assert not allows(policy, "s3:GetObject", f"arn:aws:s3:::cohort-2/{PREFIX}/a")


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("ec2:DescribeInstances", "*", {}),
        ("ec2:RunInstances", INSTANCE, {"aws:RequestedRegion": "eu-central-1"}),
        ("ec2:CreateTags", INSTANCE, {"ec2:CreateAction": "RunInstances"}),
        ("ec2:CreateTags", INSTANCE, OURS),
        ("ec2:TerminateInstances", INSTANCE, OURS),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/fetal-planes-worker",
         {"iam:PassedToService": "ec2.amazonaws.com"}),
    ],
)  # fmt: skip
def test_the_head_may_start_and_end_workers(
    action: str, resource: str, context: dict[str, str]
) -> None:
    assert allows(load(HEAD_POLICY), action, resource, context)


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("ec2:TerminateInstances", INSTANCE, {}),
        ("ec2:TerminateInstances", INSTANCE, {"aws:ResourceTag/ray-cluster-name": "other"}),
        ("ec2:CreateTags", INSTANCE, {}),
        ("ec2:RunInstances", INSTANCE, {"aws:RequestedRegion": "us-east-1"}),
        ("ec2:AuthorizeSecurityGroupIngress", "*", OURS),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin",
         {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/fetal-planes-worker",
         {"iam:PassedToService": "lambda.amazonaws.com"}),
        ("s3:GetObject", "arn:aws:s3:::cohort/x", {}),
        ("iam:CreateRole", f"arn:aws:iam::{ACCOUNT}:role/x", {}),
    ],
)  # fmt: skip
def test_the_head_may_do_nothing_else(action: str, resource: str, context: dict[str, str]) -> None:
    assert not allows(load(HEAD_POLICY), action, resource, context)


@pytest.mark.parametrize("file", [STORAGE_POLICY, HEAD_POLICY])
def test_the_policies_follow_iams_grammar_once_filled_in(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    text = str(load(file, BUCKET="cohort", PREFIX=PREFIX))
    assert not re.search(r"BUCKET|PREFIX|ACCOUNT|REGION", text)
    with mock_aws():
        iam = boto3.session.Session().client("iam", region_name="us-east-1")
        document = (DEPLOYMENT / file).read_text("utf-8")
        iam.create_policy(PolicyName="ours", PolicyDocument=document)
        with pytest.raises(ClientError, match="MalformedPolicyDocument"):
            iam.create_policy(PolicyName="bad", PolicyDocument=document.replace("Effect", "Efect"))
