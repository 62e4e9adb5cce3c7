"""Every way out of a Messages request that is no answer: one envelope, its type, the ids, and whether to retry."""

import gzip
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import anthropic
import httpx2
import pytest
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as inference_pb

from services.runtime import errors
from services.runtime.calls import Call
from services.runtime.errors import GatewayError
from tests.wire.edge.conftest import StartEdge
from tests.wire.edge.running_edge import BAD_KEY, RunningEdge, Script, admitted, finished, limits, started, text

MESSAGES: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def failing(error: GatewayError) -> Script:
    async def script(_request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        nothing: tuple[list[pb.GenerationEvent], ...] = ()
        for events in nothing:
            yield events
        raise error

    return script


def check(reply: httpx2.Response, status: int, kind: str, retry: str | None) -> str:
    """The envelope, whole; returns the message."""
    body = reply.json()
    assert (reply.status_code, body.keys(), body["type"]) == (status, {"type", "error", "request_id"}, "error")
    assert reply.headers["content-type"] == "application/json"
    assert body["error"]["type"] == kind
    assert body["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    assert reply.headers.get("x-should-retry") == retry
    assert ("retry-after" in reply.headers) == (status in (429, 503, 529))
    message: str = body["error"]["message"]
    assert message
    return message


LIMITED = errors.RateLimitedError("x", retry_in=timedelta(seconds=3), metadata={"limit": "tokens"}, details=[limits()])
FAILURES = [
    pytest.param(errors.UpstreamRejectedError("no"), 400, "invalid_request_error", "false", id="refused upstream"),
    pytest.param(errors.ContextTooLongError("x"), 400, "invalid_request_error", "false", id="too long a prompt"),
    pytest.param(errors.InvalidCredentialError("x"), 401, "authentication_error", "false", id="bad key"),
    pytest.param(errors.CreditExhaustedError("x", details=[limits()]), 402, "billing_error", "false", id="no credit"),
    pytest.param(errors.CallerNotAllowedError("x"), 403, "permission_error", "false", id="not allowed"),
    pytest.param(errors.IdempotencyKeyReusedError("x"), 409, "conflict_error", "false", id="key used twice"),
    pytest.param(LIMITED, 429, "rate_limit_error", "true", id="limit"),
    pytest.param(GatewayError("x"), 500, "api_error", None, id="defect"),
    pytest.param(errors.UpstreamBrokenError("x"), 502, "api_error", None, id="broken upstream"),
    pytest.param(errors.UpstreamUnavailableError("x"), 503, "api_error", "true", id="no upstream"),
    pytest.param(errors.StoreUnavailableError("x"), 503, "api_error", "true", id="no store"),
    pytest.param(errors.UpstreamTimeoutError("x"), 504, "timeout_error", None, id="slow upstream"),
    pytest.param(errors.UpstreamOverloadedError("x"), 529, "overloaded_error", "true", id="overload"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("error", "status", "kind", "retry"), FAILURES)
async def test_a_failed_call(
    edge: RunningEdge, error: GatewayError, status: int, kind: str, retry: str | None, stream: bool
) -> None:
    edge.inference.script = failing(error)
    async with edge.http() as client:
        check(await client.post("/v1/v1/messages?beta=true", json=MESSAGES | {"stream": stream}), status, kind, retry)


async def test_failures_before_any_call(edge: RunningEdge) -> None:
    too_large = b"x" * (edge.pipeline.rules.body_limit_bytes + 1)
    odd = {"content-encoding": "br"}
    async with edge.http() as client, edge.http(None) as stranger, edge.http(BAD_KEY) as other:
        bad = "invalid_request_error"
        check(await client.post("/v1/messages", content=b"{"), 400, bad, "false")
        assert "max_tokens" in check(
            await client.post("/v1/messages", json={"model": "m", "messages": []}), 400, bad, "false"
        )
        check(await stranger.post("/v1/messages", json=MESSAGES), 401, "authentication_error", "false")
        check(await other.post("/v1/messages/count_tokens", json=MESSAGES), 401, "authentication_error", "false")
        check(await client.post("/v1/messages/batches", json={}), 404, "not_found_error", "false")
        version = {"anthropic-version": "2023-06-01"}
        assert "nope" in check(await client.get("/v1/models/nope", headers=version), 404, "not_found_error", "false")
        check(await client.get("/v1/messages"), 405, bad, "false")
        check(await client.post("/v1/messages", content=too_large), 413, "request_too_large", "false")
        check(await client.post("/v1/messages/count_tokens", content=too_large), 413, "request_too_large", "false")
        check(await client.post("/v1/messages", content=b"{}", headers=odd), 400, bad, "false")


async def test_strangers_over_their_limit(start_edge: StartEdge) -> None:
    edge = await start_edge(strangers_per_minute=1)
    async with edge.http(None) as client:
        await client.post("/v1/messages", json=MESSAGES)
        check(await client.post("/v1/messages", json=MESSAGES), 429, "rate_limit_error", "true")


async def test_a_defect_of_ours(edge: RunningEdge) -> None:
    edge.pipeline.rules = None  # type: ignore[assignment]
    async with edge.http() as client:
        check(await client.post("/v1/messages", json=MESSAGES), 500, "api_error", None)


async def test_an_unknown_encoding_has_a_code_of_its_own(edge: RunningEdge) -> None:
    async with edge.anthropic(default_headers={"content-encoding": "zstd"}) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(**MESSAGES)

    assert caught.value.error_code == "request_body_encoding_unsupported"


async def test_a_bomb_is_413_and_stops_at_the_limit(edge: RunningEdge) -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    async with edge.http() as client:
        bare = await client.post("/v1/messages", content=bomb, headers={"content-encoding": "gzip"})

    check(bare, 413, "request_too_large", "false")


async def test_a_context_overflow_is_worded_as_clients_know_it(edge: RunningEdge) -> None:
    edge.inference.script = failing(errors.ContextTooLongError("x", metadata={"context_tokens": "131072"}))
    async with edge.http() as client:
        reply = await client.post("/v1/messages", json=MESSAGES)

    assert reply.json()["error"]["message"].startswith("prompt is too long: ")


async def test_an_agent_repeats_without_streaming_after_an_error_event(edge: RunningEdge) -> None:
    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        yield [admitted(request), started(), text("Half")]
        if request.generation.stream:
            raise errors.UpstreamOverloadedError("x")
        yield [finished()]

    edge.inference.script = script
    async with edge.http() as client:
        first = await client.post("/v1/messages?beta=true", json=MESSAGES | {"stream": True})
        again = await client.post("/v1/messages?beta=true", json=MESSAGES | {"stream": False})

    last = first.text.rstrip().rsplit("\n\n", 1)[-1]
    assert last.startswith("event: error\ndata: ")
    event = json.loads(last.split("data: ")[1])
    assert (event["error"]["type"], event["request_id"]) == ("overloaded_error", first.headers["request-id"])
    assert (again.status_code, again.json()["content"]) == (200, [{"type": "text", "text": "Half"}])
    assert first.headers["request-id"] != again.headers["request-id"]
