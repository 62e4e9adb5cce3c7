"""The company proxy on the wire: when its head leaves, silence, departures, drains, and its words for every failure."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from mws.inference.v1 import forward_service_pb2 as forward_pb
from mws.inference.v1 import generation_pb2 as pb

from edge.company_proxy.rules import ProxyRules
from services.runtime import errors
from services.runtime.errors import GatewayError
from tests.company import MESSAGE, frames
from tests.wire.edge.conftest import StartEdge
from tests.wire.edge.running_edge import RunningEdge, admitted, finished, limits, started

PATH = "/proxy/anthropic/v1/messages"
TOKEN = "head.claims.signature"
ASK: dict[str, Any] = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**ASK, "stream": True}
BODIES = {"-1": ASK, "-2": STREAM}
Events = AsyncIterator[list[pb.GenerationEvent]]


def native(frame: bytes) -> pb.GenerationEvent:
    name, _, data = frame.removeprefix(b"event: ").removesuffix(b"\n\n").partition(b"\ndata: ")
    return pb.GenerationEvent(native_event=pb.NativeEvent(name=name.decode(), data=data))


FRAMES = frames(MESSAGE)
CONTENT = [started(), *map(native, FRAMES[:5])]  # up to the last delta


async def says(request: forward_pb.ForwardRequest) -> Events:
    yield [admitted(request)]  # type: ignore[arg-type]  # both kinds of requests have a call id
    yield CONTENT
    yield [*map(native, FRAMES[5:]), finished()]


def fails(error: GatewayError, *before: pb.GenerationEvent) -> Callable[[forward_pb.ForwardRequest], Events]:
    async def script(request: forward_pb.ForwardRequest) -> Events:
        if before:
            yield [admitted(request), *before]  # type: ignore[arg-type]
        raise error

    return script


def hangs(begun: asyncio.Event, *before: pb.GenerationEvent) -> Callable[[forward_pb.ForwardRequest], Events]:
    async def script(request: forward_pb.ForwardRequest) -> Events:
        yield [admitted(request), *before]  # type: ignore[arg-type]
        begun.set()
        await asyncio.Event().wait()

    return script


async def test_the_token_is_asked_about_as_staffs_and_the_request_goes_on_as_it_came(edge: RunningEdge) -> None:
    edge.forwarding.script = says
    body = b' {"novel": 1.50, ' + json.dumps(STREAM).encode()[1:]
    headers = {"x-application-name": "notebook", "anthropic-beta": "a", "idempotency-key": "k"}
    async with edge.http(TOKEN) as client:
        answer = await client.post(PATH, content=body, headers=headers)

    assert answer.content == b"".join(FRAMES)
    (asked,) = edge.forwarding.asked
    assert asked.credential.staff_token == TOKEN
    assert (asked.body_json, asked.stream, asked.max_output_tokens) == (body, True, 9)
    assert (asked.application, asked.anthropic_beta, asked.idempotency_key) == ("notebook", "a", "k")
    assert edge.admission.asked == 0


async def test_lines_within_an_event_stay_within_it(edge: RunningEdge) -> None:
    async def script(request: forward_pb.ForwardRequest) -> Events:
        spread = pb.NativeEvent(name="ping", data=b'{\n"type":"ping"}')
        yield [admitted(request), *CONTENT, pb.GenerationEvent(native_event=spread)]  # type: ignore[arg-type]
        yield [*map(native, FRAMES[5:]), finished()]

    edge.forwarding.script = script
    async with edge.http(TOKEN) as client:
        answer = await client.post(PATH, json=STREAM)

    assert b'event: ping\ndata: {\ndata: "type":"ping"}\n\n' in answer.content


CASES = [
    pytest.param(errors.InvalidCredentialError("x"), 401, id="401"),
    pytest.param(errors.CreditExhaustedError("x", details=[limits()]), 402, id="402"),
    pytest.param(errors.CallerNotAllowedError("x"), 403, id="403"),
    pytest.param(errors.UpstreamRejectedError("tools: no"), 400, id="400"),
    pytest.param(errors.ContextTooLongError("prompt is too long"), 400, id="too long"),
    pytest.param(errors.NotFoundError("no model", metadata={"resource": "model"}), 400, id="no such model"),
    pytest.param(errors.IdempotencyKeyReusedError("x"), 409, id="409"),
    pytest.param(
        errors.RateLimitedError("x", retry_in=timedelta(seconds=3), metadata={"limit": "tokens"}, details=[limits()]),
        429,
        id="429",
    ),
    pytest.param(errors.UpstreamOverloadedError("x", details=[limits()]), 429, id="an overloaded upstream"),
    pytest.param(errors.UpstreamUnavailableError("x"), 502, id="no upstream"),
    pytest.param(errors.UpstreamBrokenError("x"), 502, id="a broken answer"),
    pytest.param(errors.UpstreamTimeoutError("x"), 504, id="504"),
    pytest.param(errors.DeadlineExceededError("x"), 504, id="our deadline"),
    pytest.param(errors.StoreUnavailableError("x"), 503, id="503"),
    pytest.param(GatewayError("secret"), 500, id="500"),
]


@pytest.mark.parametrize(("error", "status"), CASES)
async def test_until_the_head_has_left_a_failure_is_a_status(
    edge: RunningEdge, error: GatewayError, status: int
) -> None:
    edge.forwarding.script = fails(error)
    async with edge.http(TOKEN) as client:
        answers = [await client.post(PATH, json=body, headers={"x-api-key": TOKEN + n}) for n, body in BODIES.items()]

    waits = status in (429, 503) or isinstance(error, errors.UpstreamUnavailableError)
    for answer in answers:
        assert (answer.status_code, list(answer.json())) == (status, ["detail"])
        assert isinstance(answer.json()["detail"], str)
        assert "secret" not in answer.text
        assert ("retry-after" in answer.headers) is waits


async def test_after_the_head_a_failure_is_anthropics_error_event(edge: RunningEdge) -> None:
    edge.forwarding.script = fails(errors.UpstreamBrokenError("x"), *CONTENT)
    async with edge.http(TOKEN) as client:
        answer = await client.post(PATH, json=STREAM)

    assert answer.status_code == 200
    head, _, data = answer.text.partition("event: error\ndata: ")
    assert head.encode() == b"".join(FRAMES[:5])
    assert json.loads(data)["error"]["type"] == "api_error"


async def test_an_answer_without_an_end_is_an_error(edge: RunningEdge) -> None:
    async def stops(request: forward_pb.ForwardRequest) -> Events:
        yield [admitted(request), *CONTENT]  # type: ignore[arg-type]

    edge.forwarding.script = stops
    async with edge.http(TOKEN) as client:
        streamed = await client.post(PATH, json=STREAM)
        whole = await client.post(PATH, json=ASK)

    assert "event: error" in streamed.text
    assert whole.status_code == 502


async def test_silence_is_broken_by_pings_alone(start_edge: StartEdge) -> None:
    edge = await start_edge(commit_after_s=0.05, ping_every_s=0.02)
    edge.forwarding.script = hangs(asyncio.Event())
    async with edge.http(TOKEN) as client, client.stream("POST", PATH, json=STREAM) as answer:
        seen = ""
        async for piece in answer.aiter_text():
            seen += piece
            if seen.count("event: ping\n") == 2:
                break

    assert answer.status_code == 200
    assert "message_start" not in seen
    assert await edge.forwarding.ended.get() == "client_gone"


async def test_a_client_that_leaves_before_the_head_ends_the_call_at_once(edge: RunningEdge) -> None:
    begun = asyncio.Event()
    edge.forwarding.script = hangs(begun)
    async with edge.http(TOKEN) as client:
        asking = asyncio.ensure_future(client.post(PATH, json=ASK))
        await begun.wait()
        asking.cancel()

        async with asyncio.timeout(5):
            assert await edge.forwarding.ended.get() == "client_gone"


async def test_a_drain_ends_a_running_stream_with_an_error_event(edge: RunningEdge) -> None:
    begun = asyncio.Event()
    edge.forwarding.script = hangs(begun, *CONTENT)
    async with edge.http(TOKEN) as client, client.stream("POST", PATH, json=STREAM) as answer:
        pieces = answer.aiter_text()
        seen = await anext(pieces)
        edge.pipeline.relays.cut()
        async for piece in pieces:
            seen += piece

    assert "event: error\n" in seen
    assert await edge.forwarding.ended.get() == "shutdown"


@pytest.mark.parametrize(
    "entry",
    ["/proxy/anthropic/v1/complete", "/anthropic/v1/complete", "/complete", "v1/complete", "/proxy/anthropic/v1/c*"],
)
async def test_a_discontinued_route_may_be_named_short(start_edge: StartEdge, entry: str) -> None:
    edge = await start_edge(proxy_rules=ProxyRules((entry,)))
    async with edge.http(None) as client:
        gone = await client.post("/proxy/anthropic/v1/complete", json={})
        other = await client.post("/proxy/anthropic/v1/other", json={})

    assert (gone.status_code, gone.json()) == (410, {"detail": "This endpoint is discontinued"})
    assert other.status_code == 404


async def test_a_repeated_version_in_the_path_is_taken_as_one(edge: RunningEdge) -> None:
    edge.forwarding.script = says
    async with edge.http(TOKEN) as client:
        assert (await client.post("/proxy/anthropic/v1/v1/messages", json=STREAM)).status_code == 200


async def test_strangers_have_a_limit_of_their_own(start_edge: StartEdge) -> None:
    edge = await start_edge(strangers_per_minute=2)
    async with edge.http(None) as client:
        answers = [await client.post(PATH, json=ASK) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert list(answers[-1].json()) == ["detail"]
    assert edge.admission.asked == 0


async def test_what_is_too_large_is_told_to_those_who_may_call(start_edge: StartEdge) -> None:
    edge = await start_edge(body_limit_bytes=100)
    async with edge.http(TOKEN) as client:
        large = await client.post(PATH, content=b" " * 101)
        edge.admission.failure = errors.InvalidCredentialError("x")
        stranger = await client.post(PATH, content=b" " * 101)

    assert (large.status_code, list(large.json())) == (413, ["detail"])
    assert stranger.status_code == 401
