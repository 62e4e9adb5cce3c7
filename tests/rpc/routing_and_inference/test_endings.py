"""Every way a call can end: what is recorded, what is charged for, and what the caller is told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import generation_pb2 as pb
from mws.metering.v1 import metering_service_pb2 as metering_pb

from services.routing_and_inference.bounding import SLICE_TOKENS
from services.routing_and_inference.ports import FailureKind, UpstreamFailure, UpstreamRequest
from services.runtime import errors
from services.runtime.calls import CancelReason
from tests.rpc.routing_and_inference.world import (
    CHARGED,
    World,
    a_request,
    a_world,
    answers,
    finished,
    hangs,
    raises,
    started,
    text,
    until,
)

pytestmark = pytest.mark.anyio

CUT = UpstreamFailure(FailureKind.CUT, retryable=True, accepted=True)
DOWN = UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=500)


async def read_until(responses: Any, kind: str) -> None:
    """Reads a stream up to an event of this kind."""
    async for response in responses:
        if any(event.WhichOneof("kind") == kind for event in response.events):
            return


def the_failure(error: errors.GatewayError) -> pb.GenerationFailure:
    return next(detail for detail in error.details if isinstance(detail, pb.GenerationFailure))


async def test_a_refusal_of_the_model_is_recorded_as_one(tmp_path: Path) -> None:
    async def refuse(request: UpstreamRequest) -> AsyncIterator[Sequence[pb.GenerationEvent]]:
        yield [started(request), finished(pb.FINISH_REASON_REFUSAL, input_tokens=3, output_tokens=0)]

    async with a_world(tmp_path, refuse) as world:
        request = a_request()
        events = await world.generate(request)

        assert [event.WhichOneof("kind") for event in events] == ["admitted", "message_started", "finished"]
        assert world.event_of(request).ending == metering_pb.ENDING_REFUSED


async def test_a_cut_after_content_is_a_typed_error_and_charged_as_delivered(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(CUT, [text("x" * 41)])) as world:
        request = a_request()
        with pytest.raises(errors.UpstreamBrokenError) as caught:
            await world.generate(request)

        event = world.event_of(request)
        assert (event.ending, event.upstream_accepted) == (metering_pb.ENDING_CUT, True)
        assert event.delivered == TokenUsage(input_tokens=3, output_tokens=11)
        assert event.reported == TokenUsage(input_tokens=11)  # a count of output from the start is not final
        failure = the_failure(caught.value)
        assert (failure.delivered, failure.charged_nano_usd) == (True, CHARGED)
        assert [(a.upstream, a.outcome) for a in failure.attempts] == [("first", "cut")]
        assert len(world.upstream.requests) == 1  # never a second upstream after content


async def test_an_upstream_that_just_stops_is_a_cut(tmp_path: Path) -> None:
    async def stop(request: UpstreamRequest) -> AsyncIterator[Sequence[pb.GenerationEvent]]:
        yield [started(request)]
        yield [text("and then")]

    async with a_world(tmp_path, stop) as world:
        with pytest.raises(errors.UpstreamBrokenError):
            await world.generate(a_request())


@pytest.mark.parametrize(
    ("failure", "expected", "attempts"),
    [
        pytest.param(DOWN, errors.UpstreamUnavailableError, 4, id="down"),
        pytest.param(
            UpstreamFailure(FailureKind.OVERLOADED, retryable=True, status=429),
            errors.UpstreamOverloadedError,
            4,
            id="overloaded",
        ),
        pytest.param(
            UpstreamFailure(FailureKind.TIMEOUT, retryable=True), errors.UpstreamTimeoutError, 2, id="timeout"
        ),
        pytest.param(
            UpstreamFailure(FailureKind.MALFORMED, retryable=True), errors.UpstreamUnavailableError, 4, id="bad"
        ),
        pytest.param(
            UpstreamFailure(FailureKind.REJECTED, retryable=False, status=400, message="no such tool"),
            errors.UpstreamRejectedError,
            1,
            id="rejected",
        ),
        pytest.param(
            UpstreamFailure(FailureKind.CONTEXT_TOO_LONG, retryable=False, status=400),
            errors.ContextTooLongError,
            1,
            id="too long for the upstream",
        ),
    ],
)
async def test_a_failure_before_content_is_recorded_without_a_charge(
    tmp_path: Path, failure: UpstreamFailure, expected: type[errors.GatewayError], attempts: int
) -> None:
    async with a_world(tmp_path, raises(failure)) as world:
        request = a_request()
        with pytest.raises(expected) as caught:
            await world.generate(request)
        await until(lambda: request.call_id in world.admission.finished)

        assert world.event_of(request).ending == metering_pb.ENDING_FAILED_BEFORE_CONTENT
        assert world.admission.finished[request.call_id].used_tokens == 0
        assert not the_failure(caught.value).delivered
        assert caught.value.limits is not None
        assert len(world.upstream.requests) == attempts


async def test_a_caller_that_leaves_closes_the_upstream_and_pays_for_what_it_got(tmp_path: Path) -> None:
    async with a_world(tmp_path, hangs([text("x" * 8)])) as world:
        request = a_request()
        responses = world.inference.Generate(request, timeout=5.0)
        await read_until(responses, "text_delta")
        responses.cancel(CancelReason.CLIENT_GONE)
        await until(lambda: request.call_id in world.metering.posted)

        event = world.event_of(request)
        assert (event.ending, event.delivered.output_tokens) == (metering_pb.ENDING_CLIENT_LEFT, 2)
        assert world.upstream.closed == 1


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        pytest.param(CancelReason.CLIENT_GONE, metering_pb.ENDING_CLIENT_LEFT_BEFORE_CONTENT, id="gone"),
        pytest.param(CancelReason.DEADLINE, metering_pb.ENDING_CLIENT_LEFT_BEFORE_CONTENT, id="deadline"),
        pytest.param(CancelReason.SHUTDOWN, metering_pb.ENDING_FAILED_BEFORE_CONTENT, id="we shut down"),
    ],
)
async def test_a_cancellation_before_content_says_whether_the_upstream_had_answered(
    tmp_path: Path, reason: CancelReason, ending: int
) -> None:
    async with a_world(tmp_path, hangs()) as world:
        request = a_request()
        responses = world.inference.Generate(request, timeout=5.0)
        await read_until(responses, "admitted")
        await until(lambda: len(world.upstream.requests) == 1)
        await asyncio.sleep(0)
        responses.cancel(reason)
        await until(lambda: request.call_id in world.metering.posted)

        event = world.event_of(request)
        assert (event.ending, event.upstream_accepted) == (ending, True)
        assert event.delivered.output_tokens == 0


async def test_the_deadline_of_a_call_ends_it(tmp_path: Path) -> None:
    async with a_world(tmp_path, hangs([text("Hi")])) as world:
        request = a_request()
        with pytest.raises(errors.DeadlineExceededError):
            [_ async for _ in world.inference.Generate(request, timeout=0.1)]
        await until(lambda: request.call_id in world.metering.posted)

        assert world.event_of(request).ending == metering_pb.ENDING_CLIENT_LEFT


async def test_a_reader_that_is_slow_to_leave_is_closed_at_its_yield(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers(*[[text("x" * 16_000)]] * 50)) as world:
        request = a_request()
        request.generation.max_output_tokens = 8_000
        responses = world.inference.Generate(request, timeout=5.0)
        await read_until(responses, "text_delta")  # and then reads no more: the window fills
        await until(lambda: len(world.upstream.requests) == 1)
        responses.cancel(CancelReason.CLIENT_GONE)
        await until(lambda: request.call_id in world.metering.posted)

        assert world.event_of(request).ending == metering_pb.ENDING_CLIENT_LEFT
        assert world.upstream.closed == 1


async def test_a_lost_link_charges_nothing(tmp_path: Path) -> None:
    async with a_world(tmp_path, hangs([text("x" * 8)])) as world:
        request = a_request()
        responses = world.inference.Generate(request, timeout=5.0)
        await read_until(responses, "text_delta")
        world.links[0]._server.close()  # no CANCEL has come: its caller crashed
        await until(lambda: request.call_id in world.admission.voided)

        assert request.call_id not in world.metering.posted
        assert (world.upstream.closed, len(world.service.leases)) == (1, 0)


async def test_a_defect_is_an_internal_error_and_still_settled(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(KeyError("a defect"))) as world:
        request = a_request()
        with pytest.raises(errors.GatewayError, match="internal error"):
            await world.generate(request)
        await until(lambda: request.call_id in world.metering.posted)

        assert world.event_of(request).ending == metering_pb.ENDING_FAILED_BEFORE_CONTENT


async def test_no_upstream_to_call_voids_the_hold(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for state in world.service.fleet.states("plain"):
            state.is_drained = True
        request = a_request()
        with pytest.raises(errors.UpstreamUnavailableError):
            await world.generate(request)
        await until(lambda: request.call_id in world.admission.voided)

        assert request.call_id not in world.metering.posted


async def test_leaving_while_the_usage_is_recorded_changes_nothing(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("Hi")], input_tokens=3, output_tokens=1)) as world:
        world.metering.gate = asyncio.Event()
        request = a_request()
        responses = world.inference.Generate(request, timeout=5.0)
        await read_until(responses, "text_delta")
        await until(lambda: world.upstream.closed == 1)
        responses.cancel(CancelReason.CLIENT_GONE)
        world.metering.gate.set()
        await until(lambda: request.call_id in world.admission.finished)

        assert world.event_of(request).ending == metering_pb.ENDING_COMPLETE
        assert world.metering.received == 1


def _long_answer(world: World) -> Any:
    """A request without a maximum, whose answer is worth about three slices at one token per three characters."""
    request = a_request("single")
    request.generation.ClearField("max_output_tokens")
    world.upstream.behaviours = [answers(*[[text("x" * 300)]] * 110, input_tokens=3, output_tokens=12_000)]
    return request


async def test_a_call_without_a_maximum_is_held_in_slices(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = _long_answer(world)
        events = await world.generate(request)

        assert events[-1].finished.reason == pb.FINISH_REASON_STOP
        held = [world.admission.asked[0].amount_nano_usd, *world.admission.extended]
        assert held == [4 * 10 + slices * SLICE_TOKENS * 100 for slices in (1, 2, 3)]
        assert world.event_of(request).held_nano_usd == held[-1]
        assert not world.upstream.requests[0].generation.HasField("max_output_tokens")


async def test_a_balance_that_ends_cuts_the_answer_and_charges_what_was_delivered(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.admission.extensions_left = 1
        request = _long_answer(world)
        events = await world.generate(request)

        last = events[-1].finished
        assert (last.reason, last.balance_cut) == (pb.FINISH_REASON_LENGTH, True)
        event = world.event_of(request)
        assert event.ending == metering_pb.ENDING_BALANCE_CUT
        sent = sum(len(item.text_delta.text) for item in events)
        assert event.delivered.output_tokens == sent // 4
        assert sent / 3 <= 2 * SLICE_TOKENS  # never more than was held
        assert world.upstream.closed == 1


async def test_an_admission_that_is_down_in_the_middle_is_a_typed_error(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = _long_answer(world)
        responses = world.inference.Generate(request, timeout=5.0)
        await read_until(responses, "admitted")
        world.admission.error = errors.StoreUnavailableError("down")
        with pytest.raises(errors.StoreUnavailableError) as caught:
            await read_until(responses, "finished")

        assert the_failure(caught.value).delivered
        assert world.event_of(request).ending == metering_pb.ENDING_CUT


async def test_a_hold_that_expired_under_a_call_ends_it_like_an_empty_balance(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = _long_answer(world)
        responses = world.inference.Generate(request, timeout=5.0)
        await read_until(responses, "admitted")
        world.admission.error = errors.HoldNotOpenError("expired")
        await read_until(responses, "finished")

        assert world.event_of(request).ending == metering_pb.ENDING_BALANCE_CUT


async def test_an_admission_whose_answer_was_lost_is_voided(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request()
        world.admission.error = errors.ServiceUnavailableError("the link broke")
        with pytest.raises(errors.ServiceUnavailableError):
            await world.generate(request)
        await until(lambda: request.call_id in world.admission.voided)


async def test_renewals_carry_the_whole_hold(tmp_path: Path) -> None:
    async with a_world(tmp_path, hangs()) as world:
        request = a_request()
        responses = world.inference.Generate(request, timeout=5.0)
        await read_until(responses, "admitted")
        await world.service.leases.renew()
        assert world.admission.renewed == [world.admission.holds[request.call_id]]
        assert world.admission.renewed[0].state == admission_pb.HOLD_STATE_OPEN

        world.admission.gone = [request.call_id]
        await world.service.leases.renew()
        assert len(world.service.leases) == 0
        responses.cancel()


async def test_a_failure_under_an_idempotency_key_leaves_the_key_free(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(DOWN)) as world:
        request = a_request(idempotency_key="k", body_sha256=bytes(32))
        with pytest.raises(errors.UpstreamUnavailableError):
            await world.generate(request)
        await until(lambda: request.call_id in world.admission.voided)

        assert request.call_id not in world.metering.posted
        assert request.call_id not in world.admission.finished


async def test_an_answer_in_one_piece_without_reported_usage_is_charged_as_delivered(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("x" * 40)])) as world:
        request = a_request(stream=False)
        await world.generate(request)

        assert not world.event_of(request).HasField("reported")
        assert world.event_of(request).delivered.output_tokens == 10
