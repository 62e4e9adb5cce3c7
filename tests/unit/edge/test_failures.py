"""Every failure has its status, type and retry advice in both shapes."""

import json
from datetime import timedelta
from typing import Any

import pytest
from mws.common.v1 import error_reason_pb2 as reasons

from edge.anthropic import errors as anthropic
from edge.openai import errors as openai
from edge.problems import BadFieldError, bad_value, missing
from services.runtime import errors
from services.runtime.errors import BY_REASON, GatewayError

ROWS = {
    "REQUEST_INVALID": (400, "invalid_request_error", 400, "invalid_request_error", None),
    "CREDENTIAL_MISSING": (401, "authentication_error", 401, "invalid_request_error", "invalid_api_key"),
    "CREDENTIAL_INVALID": (401, "authentication_error", 401, "invalid_request_error", "invalid_api_key"),
    "CALLER_NOT_ALLOWED": (403, "permission_error", 403, "invalid_request_error", None),
    "ACCOUNT_FOREIGN": (403, "permission_error", 403, "invalid_request_error", None),
    "CREDIT_EXHAUSTED": (402, "billing_error", 402, "insufficient_quota", "insufficient_quota"),
    "RATE_LIMITED": (429, "rate_limit_error", 429, "requests", "rate_limit_exceeded"),
    "NOT_FOUND": (404, "not_found_error", 404, "invalid_request_error", None),
    "CALL_ALREADY_ADMITTED": (409, "conflict_error", 409, "invalid_request_error", None),
    "IDEMPOTENCY_KEY_REUSED": (409, "conflict_error", 409, "invalid_request_error", "idempotency_key_reused"),
    "HOLD_NOT_OPEN": (500, "api_error", 500, "server_error", None),
    "MESSAGE_TOO_LARGE": (413, "request_too_large", 413, "invalid_request_error", None),
    "CONTEXT_TOO_LONG": (400, "invalid_request_error", 400, "invalid_request_error", "context_length_exceeded"),
    "UPSTREAM_REJECTED": (400, "invalid_request_error", 400, "invalid_request_error", None),
    "UPSTREAM_UNAVAILABLE": (503, "api_error", 503, "server_error", None),
    "UPSTREAM_OVERLOADED": (529, "overloaded_error", 503, "server_error", None),
    "UPSTREAM_TIMEOUT": (504, "timeout_error", 504, "server_error", "timeout"),
    "UPSTREAM_BROKEN": (502, "api_error", 502, "server_error", None),
    "STORE_UNAVAILABLE": (503, "api_error", 503, "server_error", None),
    "USAGE_UNRECORDABLE": (503, "api_error", 503, "server_error", None),
    "SERVICE_UNAVAILABLE": (503, "api_error", 503, "server_error", None),
    "DEADLINE_EXCEEDED": (504, "timeout_error", 504, "server_error", "timeout"),
    "CANCELLED": (503, "api_error", 503, "server_error", None),
    "UNIMPLEMENTED": (501, "api_error", 501, "server_error", None),
    "INTERNAL": (500, "api_error", 500, "server_error", None),
    "KEYS_NOT_UNLOCKED": (403, "permission_error", 403, "invalid_request_error", None),
    "PRICE_BOOK_UNKNOWN": (503, "api_error", 503, "server_error", None),
    "ALREADY_EXISTS": (409, "conflict_error", 409, "invalid_request_error", None),
}


def _of(reply: Any) -> dict[str, Any]:
    return dict(json.loads(reply.body)["error"])


@pytest.mark.parametrize("name", [v.name for v in reasons.ErrorReason.DESCRIPTOR.values if v.number])
def test_every_reason_has_its_row_in_both_shapes(name: str) -> None:
    error = BY_REASON[reasons.ErrorReason.Value(name)]("words")
    left, right = anthropic.render(error, "id"), openai.render(error, "id")

    row = (left.status, _of(left)["type"], right.status, _of(right)["type"], _of(right)["code"])
    assert row == ROWS[name.removeprefix("ERROR_REASON_")]
    assert set(_of(right)) == {"message", "type", "param", "code"}
    assert _of(left)["message"]
    assert json.loads(left.body)["request_id"] == "id"


def test_an_internal_error_says_nothing_of_its_cause() -> None:
    reply = anthropic.render(GatewayError("table users has no column x"), "id")

    assert b"column" not in reply.body


@pytest.mark.parametrize(
    ("limit", "kind"),
    [
        pytest.param("requests", "requests", id="requests"),
        pytest.param("tokens", "tokens", id="tokens"),
        pytest.param("key_tokens", "tokens", id="a key's own tokens"),
        pytest.param("concurrency", "requests", id="concurrency counts as requests"),
        pytest.param("", "requests", id="an unnamed limit"),
    ],
)
def test_a_429_names_its_limit(limit: str, kind: str) -> None:
    error = errors.RateLimitedError("x", retry_in=timedelta(seconds=2.3), metadata={"limit": limit})
    body = _of(openai.render(error))

    assert (body["type"], body["code"]) == (kind, "rate_limit_exceeded")
    assert "try again in 3 s" in body["message"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(
            errors.RateLimitedError("x", retry_in=timedelta(milliseconds=120)),
            {"x-should-retry": "true", "retry-after": "1", "retry-after-ms": "120"},
            id="seconds are whole and at least one",
        ),
        pytest.param(
            errors.RateLimitedError("x", retry_in=timedelta(minutes=9)),
            {"x-should-retry": "false", "retry-after": "60", "retry-after-ms": "60000"},
            id="a wait is capped and not worth a retry",
        ),
        pytest.param(
            errors.RateLimitedError("x", metadata={"limit": "tokens", "ceiling": "100"}),
            {"x-should-retry": "false", "retry-after": "60", "retry-after-ms": "60000"},
            id="a call that can never pass is not worth a retry",
        ),
        pytest.param(
            errors.StoreUnavailableError("x"),
            {"x-should-retry": "true", "retry-after": "1", "retry-after-ms": "1000"},
            id="unavailability has a default wait",
        ),
        pytest.param(errors.CreditExhaustedError("x"), {"x-should-retry": "false"}, id="a top-up is not a wait"),
        pytest.param(missing(("model",)), {"x-should-retry": "false"}, id="a bad body stays bad"),
        pytest.param(errors.UpstreamTimeoutError("x"), {}, id="a timeout leaves the choice to the client"),
    ],
)
def test_retry_headers(error: GatewayError, expected: dict[str, str]) -> None:
    for render in (anthropic.render, openai.render):
        found = {name.decode(): value.decode() for name, value in render(error, "id").headers}
        assert found == expected


def test_a_402_names_what_the_balance_would_cover() -> None:
    error = errors.CreditExhaustedError("x", metadata={"affordable_output_tokens": "77"})

    assert "max_tokens <= 77" in _of(anthropic.render(error, "id"))["message"]


def test_a_model_that_is_not_there_has_its_own_code() -> None:
    error = errors.NotFoundError("no model x", metadata={"resource": "model"})

    assert (openai.render(error).status, _of(openai.render(error))["code"]) == (404, "model_not_found")


def test_a_long_prompt_is_worded_as_clients_expect() -> None:
    error = errors.ContextTooLongError("no", metadata={"context_tokens": "131072"})

    assert _of(anthropic.render(error, "id"))["message"] == "prompt is too long: the limit is 131072 tokens"


def test_a_field_of_the_neutral_form_is_named() -> None:
    violation = errors.FieldViolation("generation.messages[0].role", "is required")
    body = _of(openai.render(errors.InvalidRequestError("x", violations=[violation])))

    assert (body["param"], body["message"]) == ("messages[0].role", "messages[0].role: is required")


@pytest.mark.parametrize(
    ("error", "anthropic_text", "openai_text", "param", "code"),
    [
        pytest.param(
            missing(("max_tokens",)),
            "max_tokens: Field required",
            "Missing required parameter: 'max_tokens'.",
            "max_tokens",
            "missing_required_parameter",
            id="missing",
        ),
        pytest.param(
            BadFieldError(("messages", 0, "content"), "type", "t", expected=["string", "array"], got="integer"),
            "messages.0.content: Input should be a valid string or list",
            "Invalid type for 'messages[0].content': expected a string or an array, but got an integer instead.",
            "messages[0].content",
            "invalid_type",
            id="type",
        ),
        pytest.param(
            bad_value(("tools", 0, "input_schema"), "must be"),
            "tools.0.input_schema: must be",
            "Invalid value for 'tools[0].input_schema': must be.",
            "tools[0].input_schema",
            "invalid_value",
            id="value",
        ),
    ],
)
def test_bad_fields_are_worded_in_each_vendors_style(
    error: BadFieldError, anthropic_text: str, openai_text: str, param: str, code: str
) -> None:
    body = _of(openai.render(error))

    assert _of(anthropic.render(error, "id"))["message"] == anthropic_text
    assert (body["message"], body["param"], body["code"]) == (openai_text, param, code)


def test_stream_errors_have_the_form_of_their_shape() -> None:
    error = errors.UpstreamBrokenError("x")

    assert anthropic.render_event(error, "id").startswith(b'event: error\ndata: {"type":"error","error":{"type":"api_')
    assert openai.render_event(error, "id").startswith(b'data: {"error":{"message":')
