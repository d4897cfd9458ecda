"""The service answers as its OpenAPI document says, by requests that schemathesis makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from campaign import SETTINGS
from ray_jobs.http_api import create_app
from ray_jobs.inference import Inference
from serving_samples import MODEL

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


INFERENCE = Inference(SETTINGS, MODEL)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", create_app(INFERENCE, SETTINGS))
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
SERVED = {"name": "toy", "version": "1"}
BOUNDED = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    INFERENCE.close()


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_conform(label: str) -> None:
    """To requests that follow the document, about the model that is served."""

    @BOUNDED
    @given(case=OPERATIONS[label].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def conforms(case: schemathesis.Case) -> None:
        case.path_parameters |= {name: SERVED[name] for name in case.path_parameters}
        case.call_and_validate(checks=CHECKS)

    conforms()


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label.startswith("POST")])
def test_refusals_conform(label: str) -> None:
    """To requests that do not."""

    @BOUNDED
    @given(case=OPERATIONS[label].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def conforms(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    conforms()


def test_all_is_documented() -> None:
    assert len(OPERATIONS) == 16
    assert sum(label.startswith("POST") for label in OPERATIONS) == 4
