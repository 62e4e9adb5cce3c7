"""Calls under an idempotency key: one runs, to its end, and whoever asks again gets its answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as service_pb
from mws.inference.v1.generation_pb2 import GenerationEvent
from mws.metering.v1 import metering_service_pb2 as metering_pb

from services.routing_and_inference.ports import FailureKind, UpstreamFailure, UpstreamRequest
from services.routing_and_inference.replaying import MOST_BYTES
from services.runtime import errors
from services.runtime.calls import CancelReason
from services.runtime.channel import cancel
from tests.rpc.routing_and_inference.world import (
    ACCOUNT,
    KEY,
    LIMITS,
    World,
    a_request,
    a_world,
    answers,
    finished,
    raises,
    started,
    text,
    until,
)

TOOL = [
    GenerationEvent(tool_call_started=pb.ToolCallStarted(id="call_1", name="look")),
    GenerationEvent(tool_call_delta=pb.ToolCallDelta(arguments_json='{"a":')),
    GenerationEvent(tool_call_delta=pb.ToolCallDelta(arguments_json="1}")),
]


def keyed(*, stream: bool = True, body: bytes = bytes(32)) -> service_pb.GenerateRequest:
    return a_request(stream=stream, idempotency_key="k", body_sha256=body)


def answered_earlier(world: World) -> None:
    """Admission says of the next call that its key's call has ended."""
    call_id = next(iter(world.metering.posted))
    earlier = admission_pb.EarlierCall(call_id=call_id)
    world.admission.earlier = [admission_pb.AdmitResponse(replay=earlier, limits=LIMITS, account_id=ACCOUNT)]


def content(events: Sequence[GenerationEvent]) -> tuple[str, str, Any]:
    """Text, arguments and end of an answer."""
    said = "".join(event.text_delta.text for event in events if event.HasField("text_delta"))
    arguments = "".join(e.tool_call_delta.arguments_json for e in events if e.HasField("tool_call_delta"))
    last = events[-1].finished
    return said, arguments, (last.reason, last.usage.input_tokens, last.usage.output_tokens)


@pytest.mark.parametrize("again", [True, False], ids=["then streamed", "then in one piece"])
@pytest.mark.parametrize("first", [True, False], ids=["first streamed", "first in one piece"])
async def test_a_repeat_gets_the_same_answer_and_pays_nothing(tmp_path: Path, first: bool, again: bool) -> None:
    said = answers([text("one "), text("two")], TOOL, input_tokens=7, output_tokens=9)
    async with a_world(tmp_path, said) as world:
        original = keyed(stream=first)
        events = await world.generate(original)
        answered_earlier(world)
        repeat = keyed(stream=again)
        replayed = await world.generate(repeat)

        assert content(replayed) == content(events)
        assert replayed[0].admitted.replay_of == original.call_id
        assert replayed[0].admitted.call_id == repeat.call_id
        assert replayed[0].admitted.limits == LIMITS
        assert [event.WhichOneof("kind") for event in replayed][:2] == ["admitted", "message_started"]
        assert len(world.upstream.requests) == len(world.metering.posted) == 1


async def test_a_store_of_holds_that_was_lost_runs_nothing_twice(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("one")])) as world:
        original, repeat = keyed(), keyed()
        await world.generate(original)
        world.admission.holds.clear()
        replayed = await world.generate(repeat)
        await until(lambda: repeat.call_id in world.admission.voided)

        assert replayed[0].admitted.replay_of == original.call_id
        assert len(world.upstream.requests) == len(world.metering.posted) == 1


@pytest.mark.parametrize("is_known", [True, False], ids=["admission knows", "admission has forgotten"])
async def test_another_body_under_the_key_is_refused(tmp_path: Path, is_known: bool) -> None:
    async with a_world(tmp_path, answers([text("one")])) as world:
        await world.generate(keyed())
        if is_known:
            answered_earlier(world)
        with pytest.raises(errors.IdempotencyKeyReusedError):
            await world.generate(keyed(body=bytes(31) + b"x"))

        assert len(world.upstream.requests) == 1


async def test_a_caller_that_leaves_does_not_end_a_keyed_call(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        yield [started(request), text("one ")]
        await gate.wait()
        yield [text("two"), finished(input_tokens=3, output_tokens=2)]

    async with a_world(tmp_path, slow) as world:
        request = keyed()
        call = world.inference.Generate(request, timeout=10.0)
        async for response in call:
            if any(event.HasField("text_delta") for event in response.events):
                break
        cancel(call, CancelReason.CLIENT_GONE)
        gate.set()
        await until(lambda: request.call_id in world.metering.posted)
        answered_earlier(world)
        replayed = await world.generate(keyed())

        assert content(replayed)[0] == "one two"
        assert world.event_of(request).ending == metering_pb.ENDING_COMPLETE
        assert len(world.upstream.requests) == 1


async def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    rejected = raises(UpstreamFailure(FailureKind.REJECTED, retryable=False, status=400))
    async with a_world(tmp_path, rejected, answers([text("one")])) as world:
        failed = keyed()
        with pytest.raises(errors.UpstreamRejectedError):
            await world.generate(failed)
        await until(lambda: failed.call_id in world.admission.voided)

        assert content(await world.generate(keyed()))[0] == "one"


async def test_an_answer_that_is_too_large_is_not_kept_but_its_key_is_taken(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("x" * MOST_BYTES)])) as world:
        await world.generate(keyed())
        answered_earlier(world)
        with pytest.raises(errors.IdempotencyKeyReusedError):
            await world.generate(keyed())

        assert len(world.upstream.requests) == 1


async def test_without_metering_a_keyed_call_does_not_run(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.is_down = True
        request = keyed()
        with pytest.raises(errors.StoreUnavailableError):
            await world.generate(request)
        await until(lambda: request.call_id in world.admission.voided)

        assert world.upstream.requests == []


async def test_embeddings_are_replayed_too(tmp_path: Path) -> None:
    def embed() -> service_pb.EmbedRequest:
        fresh = a_request()
        request = service_pb.EmbedRequest(call_id=fresh.call_id, credential=KEY, model="vectors")
        request.inputs.add(text="Hello")
        request.idempotency_key, request.body_sha256 = "k", bytes(32)
        return request

    async with a_world(tmp_path) as world:
        first = await world.inference.Embed(embed(), timeout=5.0)
        answered_earlier(world)
        again = await world.inference.Embed(embed(), timeout=5.0)

        assert (again.embeddings, again.usage) == (first.embeddings, first.usage)
        assert again.limits == LIMITS
        assert len(world.vectors.embedded) == 1


async def test_a_key_of_another_kind_of_call_is_refused(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.generate(keyed())
        answered_earlier(world)
        request = service_pb.RerankRequest(call_id=a_request().call_id, credential=KEY, model="ranks", query="q")
        request.documents.append("d")
        request.idempotency_key, request.body_sha256 = "k", bytes(32)
        with pytest.raises(errors.IdempotencyKeyReusedError):
            await world.inference.Rerank(request, timeout=5.0)
