"""An answer that breaks off after content: gone on with where that is certain, a typed error where it is not."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent
from mws.metering.v1 import metering_service_pb2 as metering_pb

from services.routing_and_inference.catalog import Catalogue
from services.routing_and_inference.ports import FailureKind, UpstreamFailure, UpstreamRequest
from services.runtime import errors
from tests.rpc.routing_and_inference.world import (
    Behaviour,
    a_request,
    a_world,
    answers,
    finished,
    hangs,
    raises,
    small_catalogue,
    started,
    text,
    until,
)

CUT = UpstreamFailure(FailureKind.CUT, retryable=True, accepted=True)
REJECTED = UpstreamFailure(FailureKind.REJECTED, retryable=False, status=400)


def thinking(content: str) -> GenerationEvent:
    return GenerationEvent(thinking_delta=pb.ThinkingDelta(text=content))


def tool_call(arguments: str) -> list[GenerationEvent]:
    return [
        GenerationEvent(tool_call_started=pb.ToolCallStarted(id="call_1", name="look")),
        GenerationEvent(tool_call_delta=pb.ToolCallDelta(arguments_json=arguments)),
    ]


def takes_prefill() -> Catalogue:
    return changed(lambda target: replace(target, options={"prefill": True}))


def changed(change: Callable[[Any], Any]) -> Catalogue:
    """The small catalogue with other upstreams."""
    catalogue = small_catalogue()
    profiles = [
        replace(profile, upstreams=tuple(change(target) for target in profile.upstreams))
        for profile in catalogue.profiles
    ]
    return Catalogue(profiles, defaults=catalogue.defaults, aliases=catalogue.aliases)


def said(events: Sequence[GenerationEvent], kind: str = "text_delta") -> str:
    return "".join(getattr(event, kind).text for event in events if event.WhichOneof("kind") == kind)


def cold(model: str = "plain", **changes: Any) -> Any:
    """A streamed call at temperature 0."""
    request = a_request(model)
    request.generation.temperature = 0
    request.generation.MergeFrom(pb.Generation(**changes))
    return request


def goes_on(rest: str) -> Behaviour:
    return answers([text(rest)], input_tokens=20, output_tokens=3)


async def broken_call(world: Any, request: Any) -> tuple[list[GenerationEvent], errors.GatewayError]:
    """What left of a call before it failed, and how it failed."""
    events: list[GenerationEvent] = []
    try:
        async for response in world.inference.Generate(request, timeout=10.0):
            events += response.events
    except errors.GatewayError as error:
        return events, error
    pytest.fail("the call came to its end")


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(["one two three four"], id="in one piece"),
        pytest.param(["one", " two", " th", "ree four"], id="in other pieces"),
        pytest.param(["one two thr", "ee four"], id="in pieces with a seam where it broke"),
        pytest.param(list("one two three four"), id="letter by letter"),
    ],
)
async def test_at_temperature_0_the_repeated_beginning_is_suppressed(tmp_path: Path, again: list[str]) -> None:
    cut = raises(CUT, [text("one two")], [text(" thr")])
    async with a_world(tmp_path, cut, answers(*[[text(piece)] for piece in again])) as world:
        request = cold()
        events = await world.generate(request)

        assert said(events) == "one two three four"
        assert [event.WhichOneof("kind") for event in events].count("message_started") == 1
        assert [sent.target.name for sent in world.upstream.requests] == ["first", "second"]
        assert world.event_of(request).ending == metering_pb.ENDING_RESCUED


async def test_a_rescued_call_is_paid_once_for_its_prompt_and_for_all_that_was_delivered(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(CUT, [text("x" * 40)]), answers([text("x" * 80)], output_tokens=9)) as world:
        request = cold()
        last = (await world.generate(request))[-1].finished

        event = world.event_of(request)
        assert (event.delivered.input_tokens, event.delivered.output_tokens) == (3, 20)
        assert not event.HasField("reported")
        assert (last.usage.input_tokens, last.usage.output_tokens, last.usage_estimated) == (3, 20, True)
        assert (event.upstream, event.attempt) == ("second", 2)


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(answers([text("one zwei")]), id="other words"),
        pytest.param(answers([text("one t")]), id="an answer that ends too early"),
        pytest.param(answers([thinking("hm")], [text("one two")]), id="thinking that was not there"),
        pytest.param(answers([text("one")], tool_call("{}")), id="a tool call before the words"),
    ],
)
async def test_a_repetition_that_contradicts_what_has_left_is_an_error(tmp_path: Path, again: Behaviour) -> None:
    async with a_world(tmp_path, raises(CUT, [text("one two")]), again) as world:
        request = cold()
        events, error = await broken_call(world, request)

        assert isinstance(error, errors.UpstreamBrokenError)
        assert said(events) == "one two"
        assert world.event_of(request).ending == metering_pb.ENDING_CUT
        assert [state.failures for state in world.service.fleet.states("plain")] == [1, 0]


async def test_warm_answers_are_not_made_again(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(CUT, [text("one two")]), answers([text("one two three")])) as world:
        events, error = await broken_call(world, a_request())

        assert isinstance(error, errors.UpstreamBrokenError)
        assert (said(events), len(world.upstream.requests)) == ("one two", 1)


async def test_an_upstream_that_takes_a_prefill_writes_on(tmp_path: Path) -> None:
    cut = raises(CUT, [text("one two ")])
    async with a_world(tmp_path, cut, goes_on("three four"), catalogue=takes_prefill()) as world:
        request = a_request()
        events = await world.generate(request)

        assert said(events) == "one two three four"
        asked = world.upstream.requests[1].generation
        assert (asked.messages[-1].role, asked.messages[-1].content[0].text.text) == (pb.ROLE_ASSISTANT, "one two")
        assert asked.max_output_tokens == 1_000 - 2
        assert len(world.upstream.requests[0].generation.messages) == 1  # the caller's own is left as it was
        assert world.event_of(request).ending == metering_pb.ENDING_RESCUED


async def test_a_prefill_of_the_caller_is_written_on(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(CUT, [text("two")]), goes_on(" three"), catalogue=takes_prefill()) as world:
        request = a_request()
        request.generation.messages.add(role=pb.ROLE_ASSISTANT).content.add().text.text = "one "
        events = await world.generate(request)

        assert said(events) == "two three"
        assert [m.content[0].text.text for m in world.upstream.requests[1].generation.messages] == [
            "Hello there!",
            "one two",
        ]


@pytest.mark.parametrize(
    ("left", "rest", "whole"),
    [
        pytest.param("one two \n", " \nthree", "one two \nthree", id="white space that has left comes again"),
        pytest.param("one two \n", "three", "one two \nthree", id="white space that has left does not come again"),
        pytest.param("one two three", "one two three four", "one two three four", id="an echo of the prefill"),
        pytest.param("one two three", "one two four", "one two threeone two four", id="only the beginning of one"),
        pytest.param("ha", "haha", "hahaha", id="too short for an echo"),
    ],
)
async def test_the_seam_after_a_prefill_is_clean(tmp_path: Path, left: str, rest: str, whole: str) -> None:
    pieces = answers(*[[text(letter)] for letter in rest])
    async with a_world(tmp_path, raises(CUT, [text(left)]), pieces, catalogue=takes_prefill()) as world:
        assert said(await world.generate(a_request())) == whole


async def test_a_refused_prefill_at_temperature_0_is_followed_by_a_restart(tmp_path: Path) -> None:
    behaviours = (raises(CUT, [text("one")]), raises(REJECTED), answers([text("one two")]))
    async with a_world(tmp_path, *behaviours, catalogue=takes_prefill()) as world:
        events = await world.generate(cold("single"))

        assert said(events) == "one two"
        assert len(world.upstream.requests[1].generation.messages) == 2
        assert len(world.upstream.requests[2].generation.messages) == 1


async def test_a_refused_prefill_otherwise_ends_in_an_error(tmp_path: Path) -> None:
    behaviours = (raises(CUT, [text("one")]), raises(REJECTED))
    async with a_world(tmp_path, *behaviours, catalogue=takes_prefill()) as world:
        events, error = await broken_call(world, a_request())

        assert isinstance(error, errors.UpstreamBrokenError)
        assert said(events) == "one"


@pytest.mark.parametrize("catalogue", [takes_prefill, small_catalogue], ids=["with prefill", "without"])
async def test_a_cut_inside_tool_arguments_is_an_error(tmp_path: Path, catalogue: Callable[[], Catalogue]) -> None:
    cut = raises(CUT, [text("Let me look.")], tool_call('{"where": "un'))
    async with a_world(tmp_path, cut, answers([text("x")]), catalogue=catalogue()) as world:
        _, error = await broken_call(world, cold())

        assert isinstance(error, errors.UpstreamBrokenError)
        assert len(world.upstream.requests) == 1


async def test_thinking_that_has_left_is_not_thought_again(tmp_path: Path) -> None:
    signature = GenerationEvent(thinking_signature=pb.ThinkingSignature(signature="s"))
    whole = [[thinking("hm, well")], [signature], [text("one two")]]
    cut = raises(CUT, [thinking("hm, well")], [signature], [text("one")])
    async with a_world(tmp_path, cut, answers(*whole), catalogue=takes_prefill()) as world:
        events = await world.generate(cold())

        assert (said(events, "thinking_delta"), said(events)) == ("hm, well", "one two")
        assert [event.WhichOneof("kind") for event in events].count("thinking_signature") == 1


async def test_a_rescue_that_breaks_off_is_rescued_too(tmp_path: Path) -> None:
    behaviours = (raises(CUT, [text("one ")]), raises(CUT, [text("one two ")]), answers([text("one two three")]))
    async with a_world(tmp_path, *behaviours) as world:
        events = await world.generate(cold())

        assert said(events) == "one two three"
        assert [request.attempt for request in world.upstream.requests] == [1, 2, 3]


async def test_an_only_upstream_rescues_its_own_answer(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(CUT, [text("one ")]), answers([text("one two")])) as world:
        assert said(await world.generate(cold("single"))) == "one two"


async def test_attempts_to_rescue_are_bounded(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(CUT, [text("one ")]), raises(CUT, [text("one ")])) as world:
        events, error = await broken_call(world, cold())

        assert isinstance(error, errors.UpstreamBrokenError)
        assert (said(events), len(world.upstream.requests)) == ("one ", 4)


# ---- waits, and who is tried ----


async def test_an_upstream_that_asks_for_a_little_patience_gets_it(tmp_path: Path) -> None:
    busy = UpstreamFailure(FailureKind.OVERLOADED, retryable=True, status=429, retry_in=timedelta(milliseconds=20))
    async with a_world(tmp_path, raises(busy), answers([text("Hi")])) as world:
        assert said(await world.generate(a_request("single"))) == "Hi"
        assert [request.attempt for request in world.upstream.requests] == [1, 2]


async def test_an_upstream_that_asks_for_much_patience_is_not_waited_for(tmp_path: Path) -> None:
    busy = UpstreamFailure(FailureKind.OVERLOADED, retryable=True, status=429, retry_in=timedelta(seconds=30))
    async with a_world(tmp_path, raises(busy), answers([text("Hi")])) as world:
        _, error = await broken_call(world, a_request("single"))

        assert isinstance(error, errors.UpstreamOverloadedError)
        assert error.retry_in == timedelta(seconds=30)
        assert len(world.upstream.requests) == 1


async def test_a_prompt_that_is_too_long_for_one_model_is_tried_at_another(tmp_path: Path) -> None:
    too_long = UpstreamFailure(FailureKind.CONTEXT_TOO_LONG, retryable=False, status=400)
    catalogue = changed(lambda target: replace(target, model=target.name))
    async with a_world(tmp_path, raises(too_long), answers([text("Hi")]), catalogue=catalogue) as world:
        assert said(await world.generate(a_request())) == "Hi"


async def test_a_first_token_that_is_late_is_not_waited_for(tmp_path: Path) -> None:
    catalogue = changed(lambda target: replace(target, options={"first_token_timeout_s": 0.02}))
    async with a_world(tmp_path, hangs(), answers([text("Hi")]), catalogue=catalogue) as world:
        events = await world.generate(a_request())
        await until(lambda: world.upstream.closed == 2)

        assert said(events) == "Hi"
        assert [state.last_failure for state in world.service.fleet.states("plain")] == ["timeout", ""]


async def test_tokens_after_the_first_may_take_their_time(tmp_path: Path) -> None:
    async def slow(request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        yield [started(request)]
        yield [text("one")]
        await _turns(50)
        yield [text(" two")]
        yield [finished()]

    catalogue = changed(lambda target: replace(target, options={"first_token_timeout_s": 0.001}))
    async with a_world(tmp_path, slow, catalogue=catalogue) as world:
        assert said(await world.generate(a_request())) == "one two"


async def _turns(milliseconds: int) -> None:
    loop = asyncio.get_running_loop()
    due = loop.create_future()
    loop.call_later(milliseconds / 1_000, due.set_result, None)
    await due
