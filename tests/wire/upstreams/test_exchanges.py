"""Whole attempts at a real HTTP server that speaks the upstream dialects: what is sent, read, logged, and left."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.ports import Dialects, FailureKind, Upstream, UpstreamFailure
from services.routing_and_inference.upstreams import open_dialects
from tests.builders import assert_legal, collect, fold, generation, upstream_request, usage
from tests.fakes import Break, Bytes, Call, Drop, Hang, Refuse, Reply, Script, ScriptedProvider, scripted_provider

DEADLINE_S = 5.0
UPSTREAMS = pytest.mark.parametrize("upstream", ["openai", "anthropic"])


@asynccontextmanager
async def setting(*scripts: Script) -> AsyncIterator[tuple[ScriptedProvider, Dialects]]:
    async with scripted_provider() as provider, open_dialects() as dialects:
        provider.script(*scripts)
        yield provider, dialects


@UPSTREAMS
@pytest.mark.parametrize("stream", [True, False])
async def test_an_attempt_is_one_request_and_its_answer(upstream: str, stream: bool) -> None:
    reply = Reply("Hi there", thinking="Hm", calls=[Call("f", '{"x":1}', "a"), Call("g", '{"y":[2]}', "b")])
    async with setting(reply) as (provider, dialects):
        made = upstream_request(generation(stream=stream), upstream=upstream, base_url=provider.base_url)
        events = await collect(dialects.generation[upstream], made)
    proof = [("signature", "proof")] if upstream == "anthropic" else []
    calls = [("call", "a", "f", '{"x":1}'), ("call", "b", "g", '{"y":[2]}')]
    assert fold(events) == [("thinking", "Hm"), *proof, ("text", "Hi there"), *calls, ("finish", "tool_calls")]
    assert usage(events) == {"input_tokens": 11, "output_tokens": 7}
    assert (events[0].message_started.upstream, events[0].message_started.attempt) == ("primary", 1)
    (attempt,) = provider.attempts
    assert attempt.request_id == f"{made.call_id}.1"
    assert attempt.path == ("/v1/chat/completions" if upstream == "openai" else "/v1/messages")
    assert (attempt.body["model"], bool(attempt.body.get("stream"))) == ("model-1", stream)


@UPSTREAMS
async def test_connections_are_kept_between_streams(upstream: str) -> None:
    async with setting() as (provider, dialects):
        made = upstream_request(generation(stream=True), upstream=upstream, base_url=f"{provider.base_url}/v1")
        for _ in range(4):
            await collect(dialects.generation[upstream], made)
            await _until(lambda: provider.attempts[-1].finished)
        assert (len(provider.attempts), provider.connections) == (4, 1)
        assert provider.attempts[0].path in {"/v1/chat/completions", "/v1/messages"}


async def test_the_key_travels_in_the_header_of_the_dialect() -> None:
    async with setting() as (provider, dialects):
        for upstream in ("openai", "anthropic"):
            made = upstream_request(generation(), upstream=upstream, base_url=provider.base_url)
            await collect(dialects.generation[upstream], made)
            assert "sk-secret" not in repr(made)
    openai, anthropic = (attempt.headers for attempt in provider.attempts)
    assert openai["authorization"] == "Bearer sk-secret-key-of-ours"
    assert (anthropic["x-api-key"], anthropic["anthropic-version"]) == ("sk-secret-key-of-ours", "2023-06-01")
    assert "authorization" not in anthropic


@UPSTREAMS
@pytest.mark.parametrize(
    ("script", "kind", "accepted"),
    [
        pytest.param(Refuse(429, headers={"retry-after": "3"}), FailureKind.OVERLOADED, False, id="a limit"),
        pytest.param(Refuse(500, b"<html>oops"), FailureKind.UNAVAILABLE, False, id="500 in HTML"),
        pytest.param(Refuse(400), FailureKind.REJECTED, False, id="400"),
        pytest.param(Refuse(200, b"<html>login"), FailureKind.MALFORMED, True, id="a login page"),
        pytest.param(Refuse(200, b'{"error":{"message":"x"}}'), FailureKind.UNAVAILABLE, True, id="an error with 200"),
        pytest.param(Drop(), FailureKind.UNAVAILABLE, False, id="a connection that drops"),
        pytest.param(Hang(), FailureKind.TIMEOUT, False, id="no answer"),
        pytest.param(Break(Reply("Hi there"), 3), FailureKind.CUT, True, id="a stream that breaks"),
        pytest.param(Break(Reply("Hi there"), 3, "stall"), FailureKind.TIMEOUT, True, id="a stream that stalls"),
        pytest.param(Bytes([b"data: {nonsense\n\n"]), FailureKind.MALFORMED, True, id="a stream of nonsense"),
    ],
)
async def test_what_goes_wrong_is_a_failure(upstream: str, script: Script, kind: FailureKind, accepted: bool) -> None:
    options: dict[str, Any] = {"first_byte_timeout_s": 0.1, "idle_timeout_s": 0.1}
    async with setting(script) as (provider, dialects):
        made = upstream_request(generation(stream=True), upstream=upstream, base_url=provider.base_url, options=options)
        with pytest.raises(UpstreamFailure) as failed:
            await collect(dialects.generation[upstream], made)
    assert (failed.value.kind, failed.value.accepted) == (kind, accepted)
    if kind is FailureKind.OVERLOADED:
        assert failed.value.retry_in is not None
        assert failed.value.retry_in.total_seconds() == 3


async def test_nobody_listening_is_unavailable() -> None:
    async with open_dialects() as dialects:
        made = upstream_request(generation(), base_url="http://127.0.0.1:1")
        with pytest.raises(UpstreamFailure) as failed:
            await collect(dialects.generation["openai"], made)
    assert (failed.value.kind, failed.value.retryable) == (FailureKind.UNAVAILABLE, True)


@UPSTREAMS
async def test_closing_the_events_leaves_the_upstream_at_once(upstream: str) -> None:
    async with setting(Break(Reply("Hi there", piece=2), 6, "stall")) as (provider, dialects):
        made = upstream_request(generation(stream=True), upstream=upstream, base_url=provider.base_url)
        batches = _generator(dialects.generation[upstream], made)
        said: list[GenerationEvent] = []
        while not any(event.HasField("text_delta") for event in said):
            said += await anext(batches)
        await batches.aclose()
        await asyncio.wait_for(provider.attempts[0].left.wait(), DEADLINE_S)
        assert_legal(said, complete=False)


@UPSTREAMS
async def test_cancelling_before_the_head_leaves_the_upstream_at_once(upstream: str) -> None:
    async with setting(Hang()) as (provider, dialects):
        made = upstream_request(generation(), upstream=upstream, base_url=provider.base_url)
        task = asyncio.ensure_future(collect(dialects.generation[upstream], made))
        await _until(lambda: bool(provider.attempts))
        task.cancel()
        await asyncio.wait_for(provider.attempts[0].left.wait(), DEADLINE_S)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_upstream_that_never_says_done_is_done_after_its_reason() -> None:
    frames = [b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n']
    async with setting(Bytes(frames, end="stall")) as (provider, dialects):
        options: dict[str, Any] = {"idle_timeout_s": 0.1}
        made = upstream_request(generation(stream=True), base_url=provider.base_url, options=options)
        assert fold(await collect(dialects.generation["openai"], made)) == [("text", "Hi"), ("finish", "stop")]


def _generator(upstream: Upstream, made: Any) -> AsyncGenerator[Sequence[GenerationEvent], None]:
    return cast("AsyncGenerator[Sequence[GenerationEvent], None]", upstream.generate(made))


async def _until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0)
