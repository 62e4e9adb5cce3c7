"""Every way out of an OpenAI-shape route that is no answer has the one envelope, our ids, and a word on retrying."""

import gzip
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import openai
import pytest
from mws.common.v1 import limits_pb2
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as inference_pb

from services.runtime import errors
from services.runtime.calls import Call
from services.runtime.errors import GatewayError
from tests.wire.edge.conftest import StartEdge
from tests.wire.edge.running_edge import BAD_KEY, SIX, RunningEdge, admitted, limits, started, text

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
EMBED = {"model": "e", "input": "a"}
RERANK = {"query": "q", "documents": ["a"]}
ROUTES = {"/v1/chat/completions": CHAT, "/v1/embeddings": EMBED, "/v1/rerank": RERANK, "/v2/rerank": RERANK}


def error_of(reply: httpx2.Response) -> dict[str, Any]:
    """The error, after a look at all that every failure of these routes must have."""
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"] == reply.headers["request-id"]
    body = reply.json()
    assert set(body) <= {"error", "message"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] in {"invalid_request_error", "insufficient_quota", "requests", "tokens", "server_error"}
    assert body.get("message", error["message"]) == error["message"]
    if 400 <= reply.status_code < 500 and reply.status_code != 429:
        assert reply.headers["x-should-retry"] == "false"
    if reply.status_code in (429, 503):
        assert reply.headers["x-should-retry"] == "true"
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert int(reply.headers["retry-after-ms"]) <= 1000 * int(reply.headers["retry-after"])
    return error


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param({"content": b"{"}, 400, id="cut JSON"),
        pytest.param({"content": b""}, 400, id="no body"),
        pytest.param({"content": b"null"}, 400, id="null"),
        pytest.param({"content": b"[]"}, 400, id="a list"),
        pytest.param({"content": b'{"model":"\xff"}'}, 400, id="not UTF-8"),
        pytest.param({"content": b"a=b", "headers": {"content-type": "text/plain"}}, 400, id="a form"),
        pytest.param({"json": {}}, 400, id="nothing in it"),
        pytest.param({"content": b"{}", "headers": {"content-encoding": "br"}}, 400, id="an unknown encoding"),
        pytest.param({"content": b"{}", "headers": {"content-encoding": "gzip"}}, 400, id="gzip that is none"),
        pytest.param({"content": b"[" * 100_000}, 400, id="brackets without end"),
        pytest.param({"content": b"x" * (1 << 20) + b"x"}, 413, id="a body over the limit"),
        pytest.param(
            {"content": gzip.compress(b" " * (2 << 20)), "headers": {"content-encoding": "gzip"}},
            413,
            id="a small body that grows over the limit",
        ),
    ],
)
async def test_a_bad_body_is_told_so(edge: RunningEdge, sent: dict[str, Any], status: int) -> None:
    async with edge.http() as client:
        replies = {path: await client.post(path, **sent) for path in ROUTES}

    for path, reply in replies.items():
        assert (path, reply.status_code) == (path, status)
        assert error_of(reply)["type"] == "invalid_request_error"
        assert all(name in reply.headers for name in SIX)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        pytest.param("GET", "/v1/chat/completions", 405, None, id="a route by another method"),
        pytest.param("DELETE", "/v1/models/dragon", 405, None, id="deleting a model"),
        pytest.param("POST", "/v1/models", 405, None, id="making a model"),
        pytest.param("GET", "/v1/chat/completions/chatcmpl-1", 404, None, id="a stored completion"),
        pytest.param("POST", "/v1/completions", 404, None, id="the oldest shape"),
        pytest.param("POST", "/v1/responses", 404, None, id="the newest shape"),
        pytest.param("GET", "/v1/models/nobody", 404, "model_not_found", id="an unknown model"),
        pytest.param("GET", "/v1/models/vendor/model", 404, "model_not_found", id="an unknown model with a slash"),
        pytest.param("GET", "/v1/models/a%2Fb%20%C3%A9", 404, "model_not_found", id="an unknown model in escapes"),
        pytest.param("GET", "/v1/models?limit=0", 400, "invalid_value", id="a page of nothing"),
    ],
)
async def test_what_is_not_there_is_told_so(
    edge: RunningEdge, method: str, path: str, status: int, code: str | None
) -> None:
    async with edge.http() as client:
        reply = await client.request(method, path)

    error = error_of(reply)
    assert (reply.status_code, error["type"], error["code"]) == (status, "invalid_request_error", code)
    assert ("allow" in reply.headers) == (status == 405)


@pytest.mark.parametrize("key", [pytest.param(None, id="none"), pytest.param(BAD_KEY, id="a bad one")])
async def test_a_key_that_is_no_key_is_a_401_before_all_else(edge: RunningEdge, key: str | None) -> None:
    async with edge.http(key) as client:
        replies = [await client.post(path, content=b"{") for path in ROUTES]
        replies.append(await client.post("/v1/chat/completions", json=CHAT))

    assert [(reply.status_code, error_of(reply)["code"]) for reply in replies] == [(401, "invalid_api_key")] * 5


LIMITED = errors.RateLimitedError(
    "x", retry_in=timedelta(seconds=2.5), metadata={"limit": "requests"}, details=[limits_pb2.LimitsSnapshot()]
)
FAILURES = [
    pytest.param(errors.CreditExhaustedError("x", details=[limits()]), 402, "insufficient_quota", id="out of credit"),
    pytest.param(LIMITED, 429, "rate_limit_exceeded", id="over a limit"),
    pytest.param(errors.UpstreamOverloadedError("x"), 503, None, id="overloaded: never a 529 here"),
    pytest.param(errors.UpstreamUnavailableError("x"), 503, None, id="upstream gone"),
    pytest.param(errors.UpstreamBrokenError("x"), 502, None, id="upstream broken"),
    pytest.param(errors.UpstreamTimeoutError("x"), 504, "timeout", id="upstream slow"),
    pytest.param(errors.StoreUnavailableError("x"), 503, None, id="a store of ours gone"),
    pytest.param(errors.ContextTooLongError("x"), 400, "context_length_exceeded", id="a prompt too long"),
    pytest.param(errors.IdempotencyKeyReusedError("x"), 409, "idempotency_key_reused", id="a key used twice"),
    pytest.param(GatewayError("secret"), 500, None, id="a failure without a name"),
]


@pytest.mark.parametrize(("failure", "status", "code"), FAILURES)
async def test_a_failure_before_content_is_a_status(
    edge: RunningEdge, failure: GatewayError, status: int, code: str | None
) -> None:
    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        yield [admitted(request), started()]
        raise failure

    edge.inference.script = script
    async with edge.http() as client:
        replies = [await client.post("/v1/chat/completions", json=CHAT | {"stream": on}) for on in (False, True)]

    for reply in replies:
        assert (reply.status_code, error_of(reply)["code"]) == (status, code)
        assert "secret" not in reply.text


@pytest.mark.parametrize(("failure", "_status", "code"), FAILURES)
async def test_a_failure_after_content_is_the_last_chunk(
    edge: RunningEdge, failure: GatewayError, _status: int, code: str | None
) -> None:
    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        yield [admitted(request), started(), text("Hel")]
        raise failure

    edge.inference.script = script
    async with edge.openai() as client:
        stream = aiter(await client.chat.completions.create(**CHAT, stream=True))
        heard = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)

    assert heard == ["", "Hel"]
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.body["code"] == code


async def test_a_defect_says_nothing_but_that(edge: RunningEdge) -> None:
    edge.pipeline.rules = None  # type: ignore[assignment]
    async with edge.http() as client:
        replies = [await client.post(path, json=body) for path, body in ROUTES.items()]

    for reply in replies:
        error = error_of(reply)
        assert (reply.status_code, error["type"], error["message"]) == (500, "server_error", "Internal server error")


async def test_strangers_are_told_when_to_come_back(start_edge: StartEdge) -> None:
    edge = await start_edge(strangers_per_minute=1)
    async with edge.http(None) as client:
        replies = [await client.post("/v1/chat/completions", json=CHAT) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [401, 429]
    assert error_of(replies[1])["type"] == "requests"
