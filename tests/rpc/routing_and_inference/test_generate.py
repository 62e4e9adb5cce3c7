"""`Generate` as its callers see it: the order of events, refusals, and what admission hears."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.common.v1.credential_pb2 import Credential
from mws.inference.v1 import generation_pb2 as pb
from mws.metering.v1 import metering_service_pb2 as metering_pb

from services.routing_and_inference.ports import FailureKind, UpstreamFailure, UpstreamRequest
from services.runtime import errors
from services.runtime.calls import Caller, CallerClass
from tests.rpc.routing_and_inference.world import (
    ACCOUNT,
    CHARGED,
    KEY,
    LIMITS,
    a_request,
    a_world,
    answers,
    raises,
    text,
    until,
)

pytestmark = pytest.mark.anyio


def kinds(events: list[pb.GenerationEvent]) -> list[str]:
    return [str(event.WhichOneof("kind")) for event in events]


@pytest.mark.parametrize("stream", [True, False])
async def test_events_come_in_the_order_of_the_contract(tmp_path: Path, stream: bool) -> None:
    async with a_world(tmp_path, answers([text("Hi"), text(" you")], input_tokens=3, output_tokens=2)) as world:
        request = a_request(stream=stream)
        events = await world.generate(request)

        assert kinds(events) == ["admitted", "message_started", "text_delta", "text_delta", "finished"]
        admitted, last = events[0].admitted, events[-1].finished
        assert (admitted.call_id, admitted.account_id, admitted.profile) == (request.call_id, ACCOUNT, "plain")
        assert (admitted.limits, admitted.estimated_input_tokens) == (LIMITS, 3)
        assert (last.reason, last.usage.input_tokens, last.usage.output_tokens) == (pb.FINISH_REASON_STOP, 3, 2)
        assert (last.charged_nano_usd, last.usage_estimated) == (CHARGED, False)


async def test_an_answer_that_is_not_streamed_leaves_in_one_piece(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("a")], [text("b")])) as world:
        responses = [r async for r in world.inference.Generate(a_request(stream=False), timeout=5.0)]

        assert len(responses) == 1


async def test_admitted_leaves_before_the_upstream_has_said_anything(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        gate = asyncio.Event()

        async def behave(request: UpstreamRequest) -> AsyncIterator[Sequence[pb.GenerationEvent]]:
            await gate.wait()
            yield [text("x")]

        world.upstream.behaviours = [behave]
        responses = aiter(world.inference.Generate(a_request(), timeout=5.0))
        first = await anext(responses)

        assert kinds(list(first.events)) == ["admitted"]
        gate.set()


async def test_the_usage_is_on_record_before_the_answer_ends(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("Hi")])) as world:
        world.metering.gate = asyncio.Event()
        request = a_request()
        call = asyncio.create_task(world.generate(request))
        await until(lambda: len(world.upstream.requests) == 1 and world.upstream.closed == 1)
        assert not call.done()
        world.metering.gate.set()
        events = await call

        assert kinds(events)[-1] == "finished"
        assert request.call_id in world.metering.posted


async def test_admission_hears_the_bound_and_the_end(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("Hi")], input_tokens=3, output_tokens=2)) as world:
        request = a_request(application="tests")
        await world.generate(request)
        await until(lambda: request.call_id in world.admission.finished)

        asked = world.admission.asked[0]
        # 12 ASCII characters are at most 4 tokens at 10; 1,000 tokens of output at 100.
        assert (asked.amount_nano_usd, asked.rate_tokens) == (4 * 10 + 1_000 * 100, 3 + 1_000)
        assert (asked.runner, asked.operation) == ("inference-0/boot", admission_pb.OPERATION_GENERATE)
        finished = world.admission.finished[request.call_id]
        assert (finished.run_id, finished.cost_nano_usd, finished.used_tokens) == (asked.run_id, CHARGED, 5)
        event = world.event_of(request)
        assert (event.ending, event.upstream, event.attempt) == (metering_pb.ENDING_COMPLETE, "first", 1)
        assert (event.application, event.key_id, event.operation) == ("tests", "key-1", "generate")
        assert event.held_nano_usd == asked.amount_nano_usd
        assert len(world.service.leases) == 0


async def test_usage_that_was_not_reported_is_estimated(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("x" * 10)])) as world:
        request = a_request()
        last = (await world.generate(request))[-1].finished

        assert (last.usage_estimated, last.usage.input_tokens, last.usage.output_tokens) == (True, 3, 3)
        assert not world.event_of(request).HasField("reported")


@pytest.mark.parametrize(
    ("reason", "limit"),
    [
        pytest.param(admission_pb.Refusal.REASON_REQUESTS, "requests", id="requests"),
        pytest.param(admission_pb.Refusal.REASON_TOKENS, "tokens", id="tokens"),
        pytest.param(admission_pb.Refusal.REASON_CONCURRENCY, "concurrency", id="concurrency"),
        pytest.param(admission_pb.Refusal.REASON_KEY_REQUESTS, "key_requests", id="requests of the key"),
        pytest.param(admission_pb.Refusal.REASON_KEY_TOKENS, "key_tokens", id="tokens of the key"),
    ],
)
async def test_a_limit_names_itself_and_says_how_long_to_wait(tmp_path: Path, reason: int, limit: str) -> None:
    async with a_world(tmp_path) as world:
        world.admission.refusal = admission_pb.Refusal(reason=reason)  # type: ignore[arg-type]
        world.admission.refusal.retry_in.FromTimedelta(timedelta(seconds=3))
        with pytest.raises(errors.RateLimitedError) as caught:
            await world.generate(a_request())

        assert (caught.value.metadata, caught.value.retry_in) == ({"limit": limit}, timedelta(seconds=3))
        assert caught.value.limits == LIMITS
        assert world.upstream.requests == []


async def test_a_call_that_can_never_pass_is_told_so(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.admission.refusal = admission_pb.Refusal(reason=admission_pb.Refusal.REASON_TOKENS, ceiling=100)
        with pytest.raises(errors.RateLimitedError) as caught:
            await world.generate(a_request())

        assert (caught.value.metadata, caught.value.retry_in) == ({"limit": "tokens", "ceiling": "100"}, None)


async def test_an_empty_balance_says_how_much_output_it_would_cover(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.admission.refusal = admission_pb.Refusal(
            reason=admission_pb.Refusal.REASON_CREDIT, available_nano_usd=4 * 10 + 250 * 100 + 99
        )
        with pytest.raises(errors.CreditExhaustedError, match="max_tokens up to 250") as caught:
            await world.generate(a_request())

        assert caught.value.metadata == {"affordable_output_tokens": "250"}


async def test_a_repeated_call_id_reaches_the_provider_once(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request()
        outcomes = await asyncio.gather(*(world.generate(request) for _ in range(20)), return_exceptions=True)

        assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, errors.CallAlreadyAdmittedError) for outcome in outcomes) == 19
        assert (len(world.upstream.requests), world.metering.received) == (1, 1)


async def test_a_prompt_over_the_context_is_refused_before_it_costs_anything(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request()
        request.generation.messages[0].content[0].text.text = "x" * 80_004
        with pytest.raises(errors.ContextTooLongError, match=r"^prompt is too long: 20001 tokens > 20000") as caught:
            await world.generate(request)

        assert caught.value.metadata == {"context_tokens": "20000"}
        assert caught.value.limits == LIMITS
        assert world.admission.asked == []


async def test_a_bad_key_wins_over_a_bad_request(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request(credential=Credential(api_key_sha256=bytes(32)))
        del request.generation.messages[:]
        with pytest.raises(errors.InvalidCredentialError):
            await world.generate(request)


async def test_a_stated_maximum_is_clamped_to_the_profile_and_the_room(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request()
        request.generation.max_output_tokens = 1_000_000
        await world.generate(request)

        assert world.upstream.requests[0].generation.max_output_tokens == 8_000


async def test_images_are_dropped_where_nobody_sees_them(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request()
        block = request.generation.messages[0].content[0]
        block.image.url = "https://example.test/cat.png"
        tool = request.generation.messages.add(role=pb.ROLE_USER).content.add().tool_result
        tool.tool_call_id = "call-1"
        tool.content.add().image.base64_data = "AAAA"
        tool.content.add().text.text = "a cat"
        events = await world.generate(request)

        messages = world.upstream.requests[0].generation.messages
        assert messages[0].content[0].text.text == "[image omitted]"
        assert [item.text.text for item in messages[1].content[0].tool_result.content] == ["a cat"]
        assert events[0].admitted.dropped_images == 2


async def test_a_profile_with_vision_keeps_images_and_counts_them(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request("seer")
        request.generation.messages[0].content.add().image.url = "https://example.test/cat.png"
        events = await world.generate(request)

        assert world.upstream.requests[0].generation.messages[0].content[1].HasField("image")
        assert events[0].admitted.estimated_input_tokens == 3 + 1_600


async def test_a_team_pays_itself_and_nobody_else_does(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        team = world.connect(Caller(CallerClass.TEAM, "a team", ACCOUNT))
        request = a_request()
        request.ClearField("credential")
        [_ async for _ in team.Generate(request, timeout=5.0)]
        asked = world.admission.asked[0]
        assert (asked.only_account_id, asked.credential.account_id) == (ACCOUNT, ACCOUNT)

        foreign = a_request(credential=Credential(account_id="another"))
        with pytest.raises(errors.ForeignAccountError):
            [_ async for _ in team.Generate(foreign, timeout=5.0)]


@pytest.mark.parametrize(
    "credential", [pytest.param(None, id="no payer named"), pytest.param(Credential(account_id=ACCOUNT), id="its own")]
)
async def test_a_team_that_came_with_an_api_key_is_admitted_by_that_key(
    tmp_path: Path, credential: Credential | None
) -> None:
    async with a_world(tmp_path) as world:
        team = world.connect(Caller(CallerClass.TEAM, "a key", ACCOUNT, KEY.api_key_sha256))
        request = a_request()
        request.ClearField("credential")
        if credential is not None:
            request.credential.CopyFrom(credential)
        [_ async for _ in team.Generate(request, timeout=5.0)]
        asked = world.admission.asked[0]
        assert (asked.only_account_id, asked.credential) == (ACCOUNT, KEY)


async def test_a_call_that_names_no_payer_is_refused(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = a_request()
        request.ClearField("credential")
        with pytest.raises(errors.MissingCredentialError):
            await world.generate(request)


async def test_a_store_that_is_down_is_not_a_bad_key(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.admission.error = errors.StoreUnavailableError("down", retry_in=timedelta(seconds=1))
        with pytest.raises(errors.StoreUnavailableError):
            await world.generate(a_request())
        assert world.upstream.requests == []


@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_that_fails_before_content_is_invisible(tmp_path: Path, stream: bool) -> None:
    failing = raises(UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=500))
    async with a_world(tmp_path, failing, answers([text("Hi")])) as world:
        request = a_request(stream=stream)
        events = await world.generate(request)

        assert kinds(events) == ["admitted", "message_started", "text_delta", "finished"]
        assert (events[1].message_started.upstream, events[1].message_started.attempt) == ("second", 2)
        assert (world.event_of(request).upstream, world.event_of(request).attempt) == ("second", 2)


async def test_an_answer_in_one_piece_fails_over_even_after_a_cut(tmp_path: Path) -> None:
    cut = raises(UpstreamFailure(FailureKind.CUT, retryable=True, accepted=True), [text("half an ans")])
    async with a_world(tmp_path, cut, answers([text("whole")])) as world:
        events = await world.generate(a_request(stream=False))

        assert [event.text_delta.text for event in events if event.HasField("text_delta")] == ["whole"]


async def test_an_only_upstream_gets_a_second_chance_after_a_hiccup(tmp_path: Path) -> None:
    failing = raises(UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=503))
    async with a_world(tmp_path, failing, answers([text("Hi")])) as world:
        events = await world.generate(a_request("single"))

        assert kinds(events)[-1] == "finished"
        assert [request.attempt for request in world.upstream.requests] == [1, 2]


async def test_a_running_call_of_the_same_idempotency_key_is_waited_for(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        earlier = admission_pb.EarlierCall(call_id="an earlier call")
        world.admission.earlier = [admission_pb.AdmitResponse(wait=earlier, limits=LIMITS, account_id=ACCOUNT)]
        events = await world.generate(a_request(idempotency_key="k", body_sha256=bytes(32)))

        assert kinds(events)[-1] == "finished"  # the earlier one came to nothing, so this one runs
        assert world.admission.awaited == ["an earlier call"]
        assert world.admission.asked[0] == world.admission.asked[1]


async def test_an_answer_that_was_not_kept_is_not_made_again(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        earlier = admission_pb.EarlierCall(call_id="an earlier call")
        world.admission.earlier = [admission_pb.AdmitResponse(replay=earlier, limits=LIMITS, account_id=ACCOUNT)]
        with pytest.raises(errors.IdempotencyKeyReusedError):
            await world.generate(a_request(idempotency_key="k", body_sha256=bytes(32)))
        assert world.upstream.requests == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"idempotency_key": "k"}, "body_sha256", id="a key without the body's digest"),
        pytest.param({"idempotency_key": "k" * 256, "body_sha256": bytes(32)}, "idempotency_key", id="a long key"),
        pytest.param({"application": "a" * 129}, "application", id="a long application"),
        pytest.param({"call_id": "42"}, "call_id", id="an id of another form"),
        pytest.param({"call_id": "0192AAAA-0000-7000-8000-000000000001"}, "call_id", id="an id in capitals"),
    ],
)
async def test_a_broken_rule_of_the_call_names_its_field(tmp_path: Path, fields: dict[str, Any], field: str) -> None:
    async with a_world(tmp_path) as world:
        with pytest.raises(errors.InvalidRequestError) as caught:
            await world.generate(a_request(**fields))

        assert [violation.field for violation in caught.value.violations] == [field]
        assert world.admission.asked == []
