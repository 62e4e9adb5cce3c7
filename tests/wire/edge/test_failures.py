"""Failures as SDK users see them: typed exceptions before the head, typed events after it, and never a silent end."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as inference_pb

from services.runtime import errors
from services.runtime.calls import Call
from services.runtime.errors import GatewayError
from tests.wire.edge.conftest import StartEdge
from tests.wire.edge.running_edge import BAD_KEY, RunningEdge, Script, admitted, limits, started, text

USER = [{"role": "user", "content": "hi"}]
MESSAGES: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": USER}
CHAT: dict[str, Any] = {"model": "m", "messages": USER}


def failing(error: GatewayError, *before: Callable[[], pb.GenerationEvent]) -> Script:
    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        if before:
            yield [admitted(request), *(make() for make in before)]
        raise error

    return script


LIMITED = errors.RateLimitedError(
    "slow down", retry_in=timedelta(seconds=3), metadata={"limit": "tokens"}, details=[limits()]
)
CASES = [
    pytest.param(
        errors.InvalidRequestError("x"), anthropic.BadRequestError, openai.BadRequestError, 400, 400, id="400"
    ),
    pytest.param(
        errors.InvalidCredentialError("x"),
        anthropic.AuthenticationError,
        openai.AuthenticationError,
        401,
        401,
        id="401",
    ),
    pytest.param(
        errors.CreditExhaustedError("x", details=[limits()]),
        anthropic.PaymentRequiredError,
        openai.APIStatusError,
        402,
        402,
        id="402",
    ),
    pytest.param(LIMITED, anthropic.RateLimitError, openai.RateLimitError, 429, 429, id="429"),
    pytest.param(
        errors.UpstreamUnavailableError("x"),
        anthropic.ServiceUnavailableError,
        openai.InternalServerError,
        503,
        503,
        id="503",
    ),
    pytest.param(
        errors.UpstreamOverloadedError("x"), anthropic.OverloadedError, openai.InternalServerError, 529, 503, id="529"
    ),
    pytest.param(
        errors.UpstreamTimeoutError("x"), anthropic.GatewayTimeoutError, openai.InternalServerError, 504, 504, id="504"
    ),
    pytest.param(GatewayError("x"), anthropic.InternalServerError, openai.InternalServerError, 500, 500, id="500"),
]


@pytest.mark.parametrize(("error", "left", "right", "left_status", "right_status"), CASES)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("late", [False, True], ids=["refused", "admitted"])
async def test_until_content_has_left_a_failure_is_a_true_status(
    edge: RunningEdge,
    error: GatewayError,
    left: type[anthropic.APIStatusError],
    right: type[openai.APIStatusError],
    left_status: int,
    right_status: int,
    stream: bool,
    late: bool,
) -> None:
    edge.inference.script = failing(error, started) if late else failing(error)
    async with edge.anthropic() as client:
        with pytest.raises(left) as caught:
            await client.messages.create(**MESSAGES, stream=stream)
    async with edge.openai("mws_live_another") as other:
        with pytest.raises(right) as seen:
            await other.chat.completions.create(**CHAT, stream=stream)

    assert (caught.value.status_code, seen.value.status_code) == (left_status, right_status)
    assert caught.value.request_id == edge.inference.asked[0].call_id
    assert seen.value.request_id == edge.inference.asked[1].call_id


@pytest.mark.parametrize("stream", [False, True])
async def test_a_429_says_what_how_long_and_where_the_limits_stand(edge: RunningEdge, stream: bool) -> None:
    edge.inference.script = failing(LIMITED)
    async with edge.http() as client:
        reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": stream})

    assert reply.json()["error"]["type"] == "tokens"
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("3", "3000")
    assert reply.headers["x-ratelimit-limit-requests"] == "5000"


async def test_a_failure_after_content_is_an_event_of_the_shape(edge: RunningEdge) -> None:
    edge.inference.script = failing(errors.UpstreamBrokenError("x"), started, lambda: text("par"))
    async with edge.anthropic() as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with client.messages.stream(**MESSAGES) as stream:
                await stream.until_done()
    async with edge.openai() as other:
        with pytest.raises(openai.APIError) as seen:
            async for _ in await other.chat.completions.create(**CHAT, stream=True):
                pass
    async with edge.http() as bare:
        whole = await bare.post("/v1/messages", json=MESSAGES)

    assert caught.value.type == "api_error"
    assert seen.value.type == "server_error"
    assert whole.status_code == 502


async def test_an_answer_without_its_end_is_a_failure(edge: RunningEdge) -> None:
    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        yield [admitted(request), started(), text("x")]

    edge.inference.script = script
    async with edge.http() as client:
        stream = await client.post("/v1/messages", json=MESSAGES | {"stream": True})
        whole = await client.post("/v1/chat/completions", json=CHAT)

    assert stream.text.rstrip().splitlines()[-2] == "event: error"
    assert whole.status_code == 502


async def test_a_missing_key_asks_nobody(edge: RunningEdge) -> None:
    async with edge.http(None) as client:
        left = await client.post("/v1/messages", content=b"{")
        right = await client.post("/v1/chat/completions", content=b"{", headers={"authorization": "Bearer"})
        models = await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})

    assert [reply.status_code for reply in (left, right, models)] == [401, 401, 401]
    assert (left.json()["error"]["type"], right.json()["error"]["code"]) == ("authentication_error", "invalid_api_key")
    assert models.json()["type"] == "error"
    assert (edge.admission.asked, edge.inference.asked) == (0, [])


async def test_a_bad_key_is_worse_than_a_bad_body(edge: RunningEdge) -> None:
    async with edge.http(BAD_KEY) as client:
        assert (await client.post("/v1/messages", content=b"{")).status_code == 401
        assert (await client.post("/v1/messages", json=MESSAGES)).status_code == 401
    asked = edge.admission.asked
    async with edge.http() as good:
        reply = await good.post("/v1/messages", content=b"{")

    assert (asked, edge.inference.asked) == (1, [])  # the second time the key was known to be bad
    assert reply.status_code == 400
    assert reply.headers["x-ratelimit-limit-tokens"] == "160000"


async def test_a_store_that_is_down_is_never_a_401(edge: RunningEdge) -> None:
    edge.admission.failure = errors.StoreUnavailableError("x", retry_in=timedelta(seconds=1))
    async with edge.http() as client:
        reply = await client.get("/v1/models")

    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


async def test_strangers_are_limited_by_address(start_edge: StartEdge) -> None:
    edge = await start_edge(strangers_per_minute=2)
    async with edge.http(None) as client:
        statuses = [(await client.post("/v1/messages", json=MESSAGES)).status_code for _ in range(3)]
        limited = await client.post("/v1/messages", json=MESSAGES)

    assert statuses == [401, 401, 429]
    assert limited.headers["x-ratelimit-limit-requests"] == "2"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/v1/messages/count_tokens"])
async def test_a_body_over_the_limit_is_413(edge: RunningEdge, path: str) -> None:
    async with edge.http() as client:
        reply = await client.post(path, content=b"x" * (edge.pipeline.rules.body_limit_bytes + 1))

    assert reply.status_code == 413
    assert reply.headers["x-ratelimit-limit-requests"] == "5000"


@pytest.mark.parametrize(
    ("method", "path", "status", "is_anthropic"),
    [
        ("GET", "/v1/messages", 405, True),
        ("GET", "/v1/chat/completions", 405, False),
        ("DELETE", "/v1/models/dragon", 405, False),
        ("POST", "/v1/messages/batches", 404, True),
        ("POST", "/v1/responses", 404, False),
        ("GET", "/v1/nothing/at/all", 404, False),
        ("POST", "/messages", 404, True),
        ("GET", "/favicon.ico", 404, False),
    ],
)
async def test_unknown_paths_and_methods(
    edge: RunningEdge, method: str, path: str, status: int, is_anthropic: bool
) -> None:
    async with edge.http() as client:
        reply = await client.request(method, path)

    assert (reply.status_code, "type" in reply.json()) == (status, is_anthropic)


async def test_a_client_that_leaves_cancels_its_call_at_once(edge: RunningEdge) -> None:
    running, never = asyncio.Event(), asyncio.Event()

    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        yield [admitted(request), started(), text("x")]
        running.set()
        await never.wait()

    edge.inference.script = script
    for stream in (True, False):
        running.clear()
        async with edge.http() as client:
            leaving = asyncio.ensure_future(client.post("/v1/messages", json=MESSAGES | {"stream": stream}))
            await running.wait()
            leaving.cancel()
            assert await asyncio.wait_for(edge.inference.ended.get(), 2) == "client_gone"


async def test_silence_is_broken_by_pings_and_failover_stays_open_until_then(start_edge: StartEdge) -> None:
    edge = await start_edge(commit_after_s=0.05, ping_every_s=0.02)
    proceed = asyncio.Event()

    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        yield [admitted(request)]
        await proceed.wait()
        raise errors.UpstreamUnavailableError("x")

    edge.inference.script = script
    for path, body, ping in (
        ("/v1/messages", MESSAGES, "event: ping\n"),
        ("/v1/chat/completions", CHAT, ": ping\n"),
    ):
        proceed.clear()
        lines: list[str] = []
        async with edge.http() as client, client.stream("POST", path, json=body | {"stream": True}) as reply:
            async for line in reply.aiter_lines():
                lines.append(line + "\n")
                if lines.count(ping) == 2:
                    proceed.set()
        assert reply.status_code == 200
        assert "error" in json.loads([line for line in lines if line.startswith("data")][-1][6:])


async def test_pings_stop_with_the_answer(start_edge: StartEdge) -> None:
    edge = await start_edge(commit_after_s=0.01, ping_every_s=0.01)
    async with edge.http() as client:
        reply = await client.post("/v1/messages", json=MESSAGES | {"stream": True})

    assert reply.text.endswith('data: {"type":"message_stop"}\n\n')


async def test_a_drain_ends_streams_with_a_typed_error(edge: RunningEdge) -> None:
    running, never = asyncio.Event(), asyncio.Event()

    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        yield [admitted(request), started(), text("x")]
        running.set()
        await never.wait()

    edge.inference.script = script
    async with edge.http() as client:
        asked = asyncio.ensure_future(client.post("/v1/messages", json=MESSAGES | {"stream": True}))
        await running.wait()
        edge.pipeline.relays.cut()
        reply = await asked

    assert reply.text.rstrip().splitlines()[-2] == "event: error"
    assert await edge.inference.ended.get() == "shutdown"


async def test_a_defect_is_a_500_without_its_text(edge: RunningEdge) -> None:
    edge.pipeline.rules = None  # type: ignore[assignment]
    async with edge.http() as client:
        reply = await client.post("/v1/messages", json=MESSAGES)

    assert (reply.status_code, reply.json()["error"]["message"]) == (500, "Internal server error")


async def test_a_half_sent_request_leaves_nothing_behind(edge: RunningEdge) -> None:
    host, port = httpx2.URL(edge.url).host, httpx2.URL(edge.url).port
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    assert edge.inference.asked == []
