"""The company proxy's OpenAPI document holds, whatever is sent, and its page leads to it.

Owns that comparison on a running gateway; `make fuzz` runs it with many more examples.
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

from edge.company_proxy.documentation import openapi_document
from tests.company import Company

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


@pytest.mark.parametrize("company", ["link"], indirect=True)
@schema.parametrize()
@settings(max_examples=1000 if IS_THOROUGH else 20, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_document_holds(case: "schemathesis.Case[Any]", company: Company) -> None:
    company.claude.answer()
    if isinstance(case.body, dict) and case.body.get("max_tokens"):
        case.body["model"] = "claude-opus-4-6"  # else hardly any request would come as far as the upstream
    headers = {"authorization": f"Bearer {company.realm.token()}"}

    case.call_and_validate(base_url=company.gateway.base_url, headers=headers, checks=CHECKS)


@pytest.mark.parametrize("company", ["link"], indirect=True)
def test_the_page_shows_the_document_and_lets_it_be_tried(company: Company) -> None:
    page = company.http.get("/proxy/anthropic/docs")
    document = company.http.get("/proxy/anthropic/openapi.json").json()

    assert page.headers["content-type"].startswith("text/html")
    assert "/proxy/anthropic/openapi.json" in page.text
    assert document == openapi_document()
    operation = document["paths"]["/proxy/anthropic/v1/messages"]["post"]
    documented = {"400", "401", "403", "410", "422", "429", "502", "504"}
    assert documented <= operation["responses"].keys()
    assert operation["security"]
    problem = document["components"]["schemas"]["Problem"]["properties"]
    assert list(problem) == ["loc", "msg", "type", "input", "ctx"]
