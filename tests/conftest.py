"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from hypothesis import HealthCheck, settings
from moto.server import ThreadedMotoServer

from required import lack

ROOT = Path(__file__).resolve().parents[1]

# What takes long says that the machine is busy, not that something is wrong.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what lacks a program or a right; see ``required.lack``."""
    for mark in item.iter_markers("needs"):
        there, reason = mark.args
        if not there:
            lack(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images and tables; ``FETAL_SHARED`` or ``../shared`` beside the checkout."""
    shared = Path(os.environ.get("FETAL_SHARED", ROOT.parent / "shared"))
    if not (shared / "data").is_dir():
        pytest.skip(f"real data not found at {shared}; set FETAL_SHARED to run this test")
    return shared / "data"


@pytest.fixture(scope="session")
def shared_weights(shared_data: Path) -> Path:
    """Folder of pretrained weights beside the real data."""
    weights = shared_data.parent / "weights"
    if not weights.is_dir():
        pytest.skip(f"weights not found at {weights}")
    return weights


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server on this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="cohort")
        yield "s3://cohort"
    server.stop()
