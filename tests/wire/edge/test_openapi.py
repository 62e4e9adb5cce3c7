"""The OpenAPI document of the public edge holds, whatever is sent: no 5xx, no status and no body that it does not tell.

Owns that one comparison on a running gateway; `make fuzz` runs it with many more examples.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from edge.documentation import openapi_document
from tests.gateway import Gateway

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
IS_THOROUGH = settings().max_examples > 1000  # the profile of `make fuzz`
CONFIG = SchemathesisConfig.from_dict({"phases": {"coverage": {"enabled": IS_THOROUGH}}})

schema = schemathesis.openapi.from_dict(openapi_document(), config=CONFIG)


@pytest.fixture(scope="module")
def door(gateway: Gateway) -> tuple[str, dict[str, str]]:
    """Where to knock, and with which key."""
    return gateway.base_url, {"authorization": f"Bearer {gateway.account('openapi').api_key}"}


@pytest.mark.parametrize("gateway", ["link"], indirect=True)
@schema.parametrize()
@settings(max_examples=300 if IS_THOROUGH else 15, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_document_holds(case: "schemathesis.Case[Any]", door: tuple[str, dict[str, str]]) -> None:
    base_url, headers = door
    case.call_and_validate(base_url=base_url, headers=headers, checks=CHECKS)
