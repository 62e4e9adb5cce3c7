"""What an upstream's failure means, and what of its text a caller may see."""

import json
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing_and_inference.catalog import UpstreamTarget
from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.routing_and_inference.upstreams import errors

K = FailureKind


def failure(status: int, body: Any = b"", **headers: str) -> UpstreamFailure:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return errors.of_status(status, lambda name: headers.get(name.replace("-", "_"), ""), raw)


@pytest.mark.parametrize(
    ("status", "body", "kind", "retryable"),
    [
        pytest.param(400, {"error": {"message": "bad schema"}}, K.REJECTED, False, id="a bad request"),
        pytest.param(413, b"", K.REJECTED, False, id="too large"),
        pytest.param(422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, K.REJECTED, False,
                     id="a validation error"),
        pytest.param(400, {"error": {"message": "x", "code": "context_length_exceeded"}}, K.CONTEXT_TOO_LONG, False,
                     id="context by its code"),
        pytest.param(400, {"error": {"message": "This model's maximum context length is 8192 tokens."}},
                     K.CONTEXT_TOO_LONG,
                     False, id="context by OpenAI's and vLLM's words"),
        pytest.param(400, {"type": "error", "error": {"type": "invalid_request_error",
                     "message": "prompt is too long: 210000 tokens > 200000 maximum"}}, K.CONTEXT_TOO_LONG, False,
                     id="context by Anthropic's words"),
        pytest.param(400, {"error": {"message": "Failed to call a function.", "code": "tool_use_failed"}},
                     K.UNAVAILABLE, True,
                     id="the model's own fault"),
        pytest.param(401, {"error": {"message": "Incorrect API key provided: sk-abc"}}, K.UNAVAILABLE, True,
                     id="our key"),
        pytest.param(400, {"error": {"message": "API key not valid. Please pass a valid API key.",
                     "status": "INVALID_ARGUMENT"}}, K.UNAVAILABLE, True, id="our key with 400"),
        pytest.param(400, {"type": "error", "error": {"type": "invalid_request_error",
                     "message": "Your credit balance is too low to access the Anthropic API."}}, K.UNAVAILABLE, True,
                     id="our bill with 400"),
        pytest.param(400, {"error": {"message": "The model `x` does not exist or you do not have access to it."}},
                     K.UNAVAILABLE, True, id="our model name with 400"),
        pytest.param(400, {"error": {"message": "This organization has been disabled."}}, K.UNAVAILABLE, True,
                     id="our organisation with 400"),
        pytest.param(400, {"error": {"message": "This model does not support image input."}}, K.REJECTED, False,
                     id="a wish that the model cannot fulfil"),
        pytest.param(402, b"", K.UNAVAILABLE, True, id="our bill"),
        pytest.param(403, b"", K.UNAVAILABLE, True, id="our permission"),
        pytest.param(404, {"error": {"code": "model_not_found"}}, K.UNAVAILABLE, True, id="our model name"),
        pytest.param(408, b"", K.OVERLOADED, True, id="408"),
        pytest.param(409, b"", K.OVERLOADED, True, id="409"),
        pytest.param(425, b"", K.OVERLOADED, True, id="425"),
        pytest.param(429, {"error": {"type": "requests"}}, K.OVERLOADED, True, id="a limit"),
        pytest.param(429, {"error": {"code": "insufficient_quota"}}, K.UNAVAILABLE, True, id="a limit that is a bill"),
        pytest.param(529, b"", K.OVERLOADED, True, id="529"),
        pytest.param(500, b"", K.UNAVAILABLE, True, id="500"),
        pytest.param(502, b"<html>nginx</html>", K.UNAVAILABLE, True, id="HTML"),
        pytest.param(503, {"error": {"type": "overloaded_error"}}, K.OVERLOADED, True, id="503 that says overloaded"),
        pytest.param(504, b"", K.TIMEOUT, True, id="a gateway's timeout"),
        pytest.param(301, b"", K.UNAVAILABLE, True, id="a redirect is not followed"),
    ],
)  # fmt: skip
def test_a_status_has_a_meaning(status: int, body: Any, kind: FailureKind, retryable: bool) -> None:
    failed = failure(status, body)
    assert (failed.kind, failed.retryable, failed.status, failed.accepted) == (kind, retryable, status, False)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"error": {"message": "boom"}}, id="error object"),
        pytest.param({"error": "boom"}, id="error text"),
        pytest.param({"message": "boom"}, id="message"),
        pytest.param({"detail": "boom"}, id="detail"),
        pytest.param({"detail": [{"msg": "boom"}]}, id="detail list"),
        pytest.param({"detail": {"error": {"message": "boom"}}}, id="detail object"),
        pytest.param({"object": "error", "message": "boom", "code": 400}, id="unwrapped"),
        pytest.param({"type": "error", "error": {"type": "x", "message": "boom"}}, id="Anthropic"),
        pytest.param([{"error": {"message": "boom"}}], id="in an array"),
        pytest.param(b"boom", id="plain text"),
    ],
)
def test_every_shape_of_error_body_is_read(body: Any) -> None:
    assert failure(400, body).message == "boom"


@pytest.mark.parametrize(
    "body", [b"<!DOCTYPE html><p>boom", b"\xff\xfe", b"[]", b"7", b"null", {"error": {"message": 7}}]
)
def test_what_says_nothing_is_empty(body: Any) -> None:
    assert "boom" not in failure(400, body).message


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-aBcD1234efgh5678",
        "sk-ant-api03-xxxxYYYY",
        "gsk_1234567890abcdef",
        "org-AbCdEf123456",
        "https://internal.example/v1?key=1",
        "10.0.12.7:8080",
        "ops@provider.com",
        "gpu-7.cluster.local",
        "Bearer abcdef123456",
        "3f2b8c9d0e1f4a5b6c7d8e9f0a1b2c3d",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA1234567890abcdefghij",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def",
        "project-123456789",
        "tenant_abcdef",
        "123456789012",
        "grpc://10.1.2.3:50051/x",
        "redis://user:pw@cache",
        "fe80::1ff:fe23:4567:890a",
        "localhost:8000",
        "llm.prod.example.co",
        "0192f0c1-2345-7000-8000-000000000001",
    ],
)
def test_a_caller_never_sees_whose_account_it_was(secret: str) -> None:
    message = failure(400, {"error": {"message": f"Invalid value in request ({secret}): no such thing"}}).message
    assert secret not in message
    assert message.startswith("Invalid value in request (")


@pytest.mark.parametrize(
    "text",
    [
        "Invalid schema for function 'get_weather': 'strng' is not valid under any of the given schemas.",
        "tools.0.custom.input_schema: JSON schema is invalid at 12:30, see messages.1.content.0.text",
        "max_tokens: 128001 > 128000, which is the maximum allowed number of output tokens",
        "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) is supported.",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert failure(400, {"error": {"message": text}}).message == text


def test_what_we_know_of_an_upstream_is_taken_out_whatever_it_looks_like() -> None:
    target = UpstreamTarget("primary", "openai", "http://gpu-box:8000/v1", "m", "plainkey")
    failed = failure(400, {"error": {"message": "gpu-box:8000 says: plainkey at gpu-box may not do this"}})
    errors.scrub(failed, target)
    assert failed.message == "[removed] says: [removed] at [removed] may not do this"
    short = UpstreamTarget("primary", "openai", "http://a/v1", "m", "x")
    failed = failure(400, {"error": {"message": "a box"}})
    errors.scrub(failed, short)
    assert failed.message == "a box"


@pytest.mark.parametrize(
    "text", ["a." * 60_000, "model " * 40_000, "a-" * 60_000, "input tokens + " * 20_000, ":" * 9000]
)
def test_no_text_keeps_us_busy(text: str) -> None:
    began = time.process_time()
    failure(400, {"error": {"message": text}})
    assert time.process_time() - began < 0.5


def test_failures_that_are_not_the_callers_have_no_text() -> None:
    assert failure(401, {"error": {"message": "Incorrect API key provided"}}).message == ""
    assert failure(500, b"Traceback").message == ""


@given(st.text(max_size=2000))
def test_messages_are_short(text: str) -> None:
    assert len(errors.clean(text)) <= 300


@pytest.mark.parametrize(
    ("headers", "retry_in"),
    [
        pytest.param({"retry_after": "7"}, timedelta(seconds=7), id="seconds"),
        pytest.param({"retry_after": "0.5"}, timedelta(seconds=0.5), id="a fraction"),
        pytest.param({"retry_after_ms": "250", "retry_after": "9"}, timedelta(milliseconds=250),
                     id="milliseconds first"),
        pytest.param({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, timedelta(), id="a date gone by"),
        pytest.param({"retry_after": "99999999"}, timedelta(minutes=10), id="beyond reason"),
        pytest.param({"retry_after": "soon"}, None, id="a word"),
        pytest.param({"retry_after": "-1"}, None, id="a negative number"),
        pytest.param({}, None, id="nothing"),
    ],
)  # fmt: skip
def test_waiting_is_read_from_headers(headers: dict[str, str], retry_in: timedelta | None) -> None:
    assert failure(429, b"", **headers).retry_in == retry_in
