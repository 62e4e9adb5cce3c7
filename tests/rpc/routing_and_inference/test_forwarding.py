"""Forwarded calls: what reaches the upstream, what passes, how each call ends, and what is held and recorded for it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub, add_AdmissionServiceServicer_to_server
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import forward_service_pb2 as service_pb
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.forward_service_pb2_grpc import ForwardServiceStub
from mws.metering.v1 import metering_service_pb2 as metering_pb
from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceStub, add_MeteringServiceServicer_to_server

from services.link.in_process import InProcessChannel
from services.routing_and_inference.adapters.spool import Spool
from services.routing_and_inference.app import Outside, wire
from services.routing_and_inference.catalog import Catalogue, CompanyProxy, Kind, Price, Profile, UpstreamTarget
from services.routing_and_inference.upstreams import open_dialects
from services.runtime import errors
from services.runtime.calls import Caller, CallerClass, CancelReason
from services.runtime.channel import cancel
from services.runtime.guard import ServiceGuard
from services.runtime.ids import new_id
from services.runtime.logging import configure_logging
from tests.fakes import Break, Bytes, Drop, Hang, Refuse, Reply, Script, ScriptedProvider, anthropic_frames
from tests.fakes import scripted_provider as a_provider
from tests.rpc.routing_and_inference.world import (
    ACCOUNT,
    CHARGED,
    EDGE,
    KEY,
    LIMITS,
    FakeAdmission,
    FakeMetering,
    as_channel,
    channel_to,
    until,
)

pytestmark = pytest.mark.anyio

PRICE = Price(input_nano_usd=10, output_nano_usd=100, cache_write_1h_nano_usd=20, search_unit_nano_usd=7_000)
BODY: dict[str, Any] = {
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hello there!"}],
    "novel": {"kept": 1.50},
}
REPLY = Reply("Hello you", input_tokens=11, output_tokens=7)


@dataclass
class World:
    """Inference with a real HTTP pool in front of a scripted provider."""

    provider: ScriptedProvider
    admission: FakeAdmission
    metering: FakeMetering
    stub: Any

    async def forward(self, request: service_pb.ForwardRequest) -> list[pb.GenerationEvent]:
        """All events of a call."""
        return [event async for answer in self.stub.Forward(request, timeout=10.0) for event in answer.events]

    def event_of(self, request: service_pb.ForwardRequest) -> metering_pb.UsageEvent:
        """What metering posted for a call."""
        return self.metering.posted[request.call_id]


def targets(base_url: str, *names: str, model: str = "claude-opus-4-6") -> tuple[UpstreamTarget, ...]:
    return tuple(UpstreamTarget(name, "anthropic", base_url, model, "sk-1", priority=n) for n, name in enumerate(names))


def a_catalogue(base_url: str) -> Catalogue:
    size: dict[str, Any] = {"context_tokens": 20_000, "max_output_tokens": 8_000}
    public = Profile("plain", Kind.GENERATION, PRICE, targets(base_url, "public"), **size)
    two = Profile("claude-opus-4-6", Kind.GENERATION, PRICE, targets(base_url, "first", "second"), **size)
    renamed = Profile("claude-*", Kind.GENERATION, PRICE, targets(base_url, "only", model="vendor/claude"), **size)
    return Catalogue([public], defaults={Kind.GENERATION: "plain"}, company_proxy=CompanyProxy(models=(renamed, two)))


@asynccontextmanager
async def a_world(directory: Path, *scripts: Script, metering: FakeMetering | None = None) -> AsyncIterator[World]:
    admission, metering = FakeAdmission(), metering or FakeMetering()
    runner = Caller(CallerClass.INFERENCE, "inference-0")
    to_admission = channel_to(add_AdmissionServiceServicer_to_server, admission, runner)
    to_metering = channel_to(add_MeteringServiceServicer_to_server, metering, runner)
    spool = Spool.open(directory / "spool", "inference-0", max_bytes=8 * 1024 * 1024)
    async with a_provider(REPLY) as provider, open_dialects() as dialects:
        provider.script(*scripts)
        outside = Outside(
            AdmissionServiceStub(as_channel(to_admission)),
            MeteringServiceStub(as_channel(to_metering)),
            spool,
            dialects,
        )
        service = wire(a_catalogue(provider.base_url), outside, runner="inference-0/boot")
        await service.prices.register()
        guard = ServiceGuard(service.table, configure_logging(process="test", level="error"))
        channel = InProcessChannel(service.table, guard, EDGE)
        background = (service.recorder.run, service.finisher.run)
        tasks = [asyncio.ensure_future(work()) for work in background]
        try:
            yield World(provider, admission, metering, ForwardServiceStub(as_channel(channel)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for link in (channel, to_admission, to_metering):
                await link.close()
            spool.close()


def a_request(*, stream: bool = True, model: str = "claude-opus-4-6", **members: Any) -> service_pb.ForwardRequest:
    return service_pb.ForwardRequest(
        call_id=new_id(),
        credential=KEY,
        model=model,
        body_json=json.dumps({**BODY, **members}).encode(),
        max_output_tokens=200,
        stream=stream,
        application="notebook",
    )


def kinds(events: Sequence[pb.GenerationEvent]) -> list[str]:
    """The kinds of events, each run of native ones as one."""
    found: list[str] = []
    for event in events:
        kind = str(event.WhichOneof("kind"))
        if found[-1:] != ["native_event"] or kind != "native_event":
            found.append(kind)
    return found


def passed(events: Sequence[pb.GenerationEvent]) -> bytes:
    """The stream that the events were."""
    native = [event.native_event for event in events if event.HasField("native_event")]
    return b"".join(b"event: %b\ndata: %b\n\n" % (event.name.encode(), event.data) for event in native)


def the_failure(error: errors.GatewayError) -> pb.GenerationFailure:
    return next(detail for detail in error.details if isinstance(detail, pb.GenerationFailure))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_is_held_recorded_and_charged_like_any_other(tmp_path: Path, stream: bool) -> None:
    async with a_world(tmp_path) as world:
        request = a_request(stream=stream)
        events = await world.forward(request)

        assert kinds(events) == ["admitted", "message_started", "native_event", "finished"]
        event = world.event_of(request)
        assert (event.ending, event.profile, event.application) == (
            metering_pb.ENDING_COMPLETE,
            "claude-opus-4-6",
            "notebook",
        )
        assert event.reported == TokenUsage(input_tokens=11, output_tokens=7)
        assert event.delivered == TokenUsage(input_tokens=event.delivered.input_tokens, output_tokens=3)
        (asked,) = world.admission.asked
        assert asked.amount_nano_usd == 200 * 100 + 9 * 20  # the dearest that a prompt token can be
        finished = events[-1].finished
        assert (finished.usage, finished.charged_nano_usd, finished.usage_estimated) == (event.reported, CHARGED, False)
        await until(lambda: request.call_id in world.admission.finished)
        assert world.admission.finished[request.call_id].cost_nano_usd == CHARGED


async def test_every_event_passes_whole_and_the_end_comes_with_finished(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request()
        answers = [answer.events async for answer in world.stub.Forward(request, timeout=10.0)]

        assert passed([event for events in answers for event in events]) == b"".join(anthropic_frames(REPLY))
        assert [event.WhichOneof("kind") for event in answers[-1]] == ["native_event", "finished"]
        assert answers[-1][0].native_event.name == "message_stop"
        (attempt,) = world.provider.attempts
        assert attempt.body == {**BODY, "model": "claude-opus-4-6", "max_tokens": 200, "stream": True}


async def test_the_upstreams_name_of_a_model_is_used_where_the_catalogue_states_one(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.forward(a_request(model="claude-sonnet-9"))
        await world.forward(a_request(model="claude-opus-4-6-20260115"))

        assert [attempt.body["model"] for attempt in world.provider.attempts] == [
            "vendor/claude",
            "claude-opus-4-6-20260115",
        ]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(Refuse(500), id="a defect"),
        pytest.param(Drop(), id="no answer"),
        pytest.param(Bytes([b"{"], "application/json"), id="no JSON"),
        pytest.param(Bytes([b'{"type":"message","content":[]}'], "application/json"), id="an answer in one piece"),
        pytest.param(Bytes([b'data: {"type":"error","error":{"type":"overloaded_error"}}\n\n']), id="an error event"),
        pytest.param(Break(REPLY, after_events=3), id="broken off before content"),
        pytest.param(Bytes([b"data: not JSON\n\n"]), id="an event that is no JSON"),
    ],
)
async def test_a_failure_before_content_is_invisible(tmp_path: Path, script: Script) -> None:
    async with a_world(tmp_path, script) as world:
        request = a_request()
        events = await world.forward(request)

        assert passed(events) == b"".join(anthropic_frames(REPLY))
        assert (world.event_of(request).upstream, world.event_of(request).attempt) == ("second", 2)
        assert events[1].message_started == pb.MessageStarted(upstream="second", attempt=2)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(Break(REPLY, after_events=5), id="cut"),
        pytest.param(
            Bytes([*anthropic_frames(REPLY)[:5], b'event: error\ndata: {"type":"error","error":{}}\n\n']), id="an error"
        ),
        pytest.param(Bytes(anthropic_frames(REPLY)[:5]), id="an end without a word"),
    ],
)
async def test_a_cut_after_content_is_a_typed_error_and_never_another_upstream(tmp_path: Path, script: Script) -> None:
    async with a_world(tmp_path, script) as world:
        request = a_request()
        with pytest.raises(errors.UpstreamBrokenError) as caught:
            await world.forward(request)

        event = world.event_of(request)
        assert (event.ending, event.reported) == (metering_pb.ENDING_CUT, TokenUsage(input_tokens=11))
        assert event.delivered.output_tokens == 2  # two deltas of four characters
        assert (the_failure(caught.value).delivered, the_failure(caught.value).charged_nano_usd) == (True, CHARGED)
        assert len(world.provider.attempts) == 1


@pytest.mark.parametrize(
    ("frames", "end"),
    [
        pytest.param(anthropic_frames(REPLY)[:-1], "close", id="closed in order"),
        pytest.param(anthropic_frames(REPLY)[:-1], "cut", id="cut"),
        pytest.param([*anthropic_frames(REPLY), b"data: [DONE]\n\n"], "close", id="more than there should be"),
    ],
)
async def test_an_answer_that_has_stopped_is_whole(tmp_path: Path, frames: list[bytes], end: str) -> None:
    async with a_world(tmp_path, Bytes(frames, end=end)) as world:
        request = a_request()
        events = await world.forward(request)

        assert events[-2].native_event.name == "message_stop"
        assert world.event_of(request).ending == metering_pb.ENDING_COMPLETE


@pytest.mark.parametrize(
    ("script", "ending"),
    [
        pytest.param(
            Break(REPLY, after_events=5, how="stall"), metering_pb.ENDING_CLIENT_LEFT, id="in the middle of content"
        ),
        pytest.param(Hang(), metering_pb.ENDING_CLIENT_LEFT_BEFORE_CONTENT, id="before any"),
    ],
)
async def test_a_caller_that_leaves_ends_the_upstreams_work(
    tmp_path: Path, script: Script, ending: "metering_pb.Ending.ValueType"
) -> None:
    async with a_world(tmp_path, script) as world:
        request = a_request()
        responses = world.stub.Forward(request, timeout=10.0)
        seen: list[pb.GenerationEvent] = []
        async for answer in responses:
            seen += answer.events
            if isinstance(script, Hang) or passed(seen).count(b"text_delta") == 2:
                break
        await until(lambda: bool(world.provider.attempts))
        cancel(responses, CancelReason.CLIENT_GONE)

        await asyncio.wait_for(world.provider.attempts[0].left.wait(), 5)
        await until(lambda: request.call_id in world.metering.posted)
        event = world.event_of(request)
        assert event.ending == ending
        assert event.delivered.output_tokens == (2 if ending == metering_pb.ENDING_CLIENT_LEFT else 0)


async def test_usage_that_was_not_reported_is_estimated(tmp_path: Path) -> None:
    async with a_world(tmp_path, Reply("x" * 41, reports_usage=False)) as world:
        request = a_request(stream=False)
        events = await world.forward(request)

        assert not world.event_of(request).HasField("reported")
        assert world.event_of(request).delivered.output_tokens == 11
        assert (events[-1].finished.usage.output_tokens, events[-1].finished.usage_estimated) == (11, True)


async def test_web_searches_are_held_and_recorded(tmp_path: Path) -> None:
    usage = {"input_tokens": 5, "output_tokens": 6, "server_tool_use": {"web_search_requests": 2}}
    body = {"type": "message", "role": "assistant", "content": [], "stop_reason": "end_turn", "usage": usage}
    async with a_world(tmp_path, Bytes([json.dumps(body).encode()], "application/json")) as world:
        request = a_request(stream=False, tools=[{"type": "web_search_20250305", "name": "s", "max_uses": 3}])
        await world.forward(request)

        # Their results become prompt, up to the whole context.
        assert world.admission.asked[0].amount_nano_usd == 20_000 * 20 + 200 * 100 + 3 * 7_000
        assert world.event_of(request).reported == TokenUsage(input_tokens=5, output_tokens=6, search_units=2)


async def test_a_refusal_of_the_model_is_recorded_as_one(tmp_path: Path) -> None:
    async with a_world(tmp_path, Reply("No.", finish="refusal")) as world:
        request = a_request()
        await world.forward(request)

        assert world.event_of(request).ending == metering_pb.ENDING_REFUSED


async def test_a_request_that_the_upstream_refuses_is_told_in_its_words_and_not_charged(tmp_path: Path) -> None:
    refusal = Refuse(400, b'{"type":"error","error":{"type":"invalid_request_error","message":"tools.0: no"}}')
    async with a_world(tmp_path, refusal) as world:
        request = a_request()
        with pytest.raises(errors.UpstreamRejectedError, match=r"tools\.0: no"):
            await world.forward(request)

        assert world.event_of(request).ending == metering_pb.ENDING_FAILED_BEFORE_CONTENT
        assert len(world.provider.attempts) == 1


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(a_request(model="plain"), errors.NotFoundError, id="a public profile"),
        pytest.param(a_request(model="gpt-4o"), errors.NotFoundError, id="an unknown model"),
        pytest.param(a_request(system="x" * 90_000), errors.ContextTooLongError, id="a prompt over the context"),
    ],
)
async def test_what_cannot_be_forwarded_takes_nothing(
    tmp_path: Path, request_: service_pb.ForwardRequest, error: type[errors.GatewayError]
) -> None:
    async with a_world(tmp_path) as world:
        with pytest.raises(error) as caught:
            await world.forward(request_)

        assert caught.value.limits is not None
        assert (world.admission.asked, world.provider.attempts) == ([], [])


class Keeping(FakeMetering):
    """Keeps the answers of calls under idempotency keys."""

    async def GetKeptAnswer(
        self, request: metering_pb.GetKeptAnswerRequest, context: Any
    ) -> metering_pb.GetKeptAnswerResponse:
        for event in self.posted.values():
            if event.answer.idempotency_key == request.idempotency_key:
                return metering_pb.GetKeptAnswerResponse(call_id=event.call_id, answer=event.answer)
        raise errors.NotFoundError("nothing is kept", metadata={"resource": "answer"})


@pytest.mark.parametrize("stream", [True, False])
async def test_a_repeat_under_an_idempotency_key_gets_the_same_words_and_runs_nothing(
    tmp_path: Path, stream: bool
) -> None:
    async with a_world(tmp_path, metering=Keeping()) as world:
        first = a_request(stream=stream)
        first.idempotency_key, first.body_sha256 = "key", bytes(32)
        again = service_pb.ForwardRequest()
        again.CopyFrom(first)
        again.call_id = new_id()
        said = await world.forward(first)
        replay = admission_pb.AdmitResponse(limits=LIMITS, account_id=ACCOUNT)
        replay.replay.call_id = first.call_id
        world.admission.earlier.append(replay)
        repeated = await world.forward(again)

        assert passed(repeated) == passed(said)
        assert repeated[0].admitted.replay_of == first.call_id
        assert repeated[-1].finished.usage == said[-1].finished.usage
        assert len(world.provider.attempts) == 1
        assert list(world.metering.posted) == [first.call_id]


async def test_a_keyed_call_goes_on_to_its_end_without_its_caller(tmp_path: Path) -> None:
    async with a_world(tmp_path, metering=Keeping()) as world:
        request = a_request()
        request.idempotency_key, request.body_sha256 = "key", bytes(32)
        responses = world.stub.Forward(request, timeout=10.0)
        async for _ in responses:
            break
        cancel(responses, CancelReason.CLIENT_GONE)

        await until(lambda: request.call_id in world.metering.posted)
        assert world.event_of(request).ending == metering_pb.ENDING_COMPLETE
