"""RecordUsage and ResolveOutcomes as inference and auth see them.

Owns outcomes, idempotency and voids; refuses to test the table of rules (unit tests do).
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.metering.v1 import metering_service_pb2 as pb
from mws.metering.v1 import usage_service_pb2 as usage_pb

from services.metering import translate
from services.runtime.errors import InvalidRequestError
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, DAY_US, NOW_US, VERSION, an_event, an_id
from tests.rpc.metering.serving import TIMEOUT_S, Running, ScriptedAuth, running_metering

POSTED, DEFERRED, REJECTED = (
    pb.RecordOutcome.KIND_POSTED,
    pb.RecordOutcome.KIND_DEFERRED,
    pb.RecordOutcome.KIND_REJECTED,
)
COST = 10 * 480 + 20 * 1080


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_metering(tmp_path) as metering:
        yield metering


def an_event_pb(**changes: object) -> pb.UsageEvent:
    return translate.event_to_pb(an_event(**changes))


def an_event_with(changes: pb.UsageEvent) -> pb.UsageEvent:
    event = an_event_pb()
    event.MergeFrom(changes)
    return event


async def test_an_event_is_priced_and_posted(running: Running) -> None:
    event = an_event_pb()

    (outcome,) = await running.record(event)

    assert outcome == pb.RecordOutcome(
        call_id=event.call_id,
        kind=POSTED,
        charged_nano_usd=COST,
        rule="complete",
        charged=TokenUsage(input_tokens=10, output_tokens=20),
    )
    assert ((balance := await running.balance()).balance_nano_usd, balance.seq) == (-COST, 1)


async def test_a_repeat_gets_the_first_outcome_and_posts_nothing(running: Running) -> None:
    event = an_event_pb()
    (first,) = await running.record(event)
    event.reported.output_tokens = 999_999  # whatever it says the second time

    in_one_batch = await running.record(event, event)

    first.repeated = True
    assert [first, first] == in_one_batch
    assert (await running.balance()).balance_nano_usd == -COST


async def test_the_same_event_twice_in_a_batch_is_posted_once(running: Running) -> None:
    event = an_event_pb()

    outcomes = await running.record(event, event)

    assert [(each.kind, each.charged_nano_usd, each.repeated) for each in outcomes] == [
        (POSTED, COST, False),
        (POSTED, COST, True),
    ]
    assert (await running.balance()).balance_nano_usd == -COST


async def test_a_thousand_races_for_one_call_post_once(running: Running) -> None:
    event = an_event_pb()

    outcomes = [each for (each,) in await asyncio.gather(*(running.record(event) for _ in range(1_000)))]

    assert (1, {COST}) == (
        sum(not each.repeated for each in outcomes),
        {each.charged_nano_usd for each in outcomes},
    )
    assert ((await running.balance()).balance_nano_usd, await running.violations()) == (-COST, [])


async def test_an_unknown_price_book_defers_and_writes_nothing(running: Running) -> None:
    known, unknown = an_event_pb(), an_event_pb(price_book_version="0" * 64)

    outcomes = await running.record(unknown, known)

    assert [each.kind for each in outcomes] == [DEFERRED, POSTED]
    assert not outcomes[0].HasField("charged_nano_usd")
    assert (await running.balance()).balance_nano_usd == -COST
    assert [each.repeated for each in await running.record(an_event_pb(call_id=unknown.call_id))] == [False]


async def test_a_free_call_is_recorded_without_moving_money(running: Running) -> None:
    event = an_event_pb(ending=pb.ENDING_FAILED_BEFORE_CONTENT)

    (outcome,) = await running.record(event)
    (resolved,) = await running.resolve(event.call_id)

    assert (outcome.kind, outcome.charged_nano_usd, outcome.rule) == (POSTED, 0, "failed_before_content")
    assert (
        resolved.kind,
        resolved.charged_nano_usd,
        resolved.HasField("charged_nano_usd"),
    ) == (pb.CallOutcome.KIND_POSTED, 0, True)
    assert await running.violations() == []


async def test_a_bad_event_is_kept_and_harms_no_other(running: Running) -> None:
    bad, good = an_event_pb(profile=""), an_event_pb()

    first = await running.record(bad, good)
    second = await running.record(bad)

    assert [(each.kind, each.repeated) for each in [*first, *second]] == [
        (REJECTED, False),
        (POSTED, False),
        (REJECTED, True),
    ]
    assert first[0].detail


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(an_event_pb(call_id="not-an-id"), id="a call id that is no UUIDv7"),
        pytest.param(an_event_pb(call_id=new_id().upper()), id="a call id that is not canonical"),
        pytest.param(an_event_pb(account_id=""), id="nobody pays"),
        pytest.param(an_event_pb(operation="chat"), id="an unknown operation"),
        pytest.param(an_event_pb(price_book_version="1"), id="a version that is no digest"),
        pytest.param(an_event_pb(requested_model="m" * 257), id="a model name that is too long"),
        pytest.param(an_event_pb(held_nano_usd=-1), id="a negative hold"),
        pytest.param(an_event_pb(attempt=-1), id="a negative attempt"),
        pytest.param(an_event_pb(started_at_us=0), id="no start"),
        pytest.param(an_event_pb(ended_at_us=0), id="no end"),
        pytest.param(an_event_pb(profile="unknown"), id="a profile without a price"),
        pytest.param(an_event_pb(application="a\0b"), id="a text that no store can keep"),
        pytest.param(an_event_pb(call_id=an_id(NOW_US - 31 * DAY_US)), id="an id from another month"),
        pytest.param(an_event_pb(call_id=an_id(NOW_US + 31 * DAY_US)), id="an id from a month to come"),
        pytest.param(an_event_pb(ended_at_us=NOW_US - DAY_US), id="a clock that was set back a day"),
        pytest.param(an_event_pb(ended_at_us=NOW_US + 3 * DAY_US), id="a clock that jumped ahead"),
        pytest.param(pb.UsageEvent(call_id=new_id()), id="almost nothing"),
        pytest.param(an_event_with(pb.UsageEvent(ending=99)), id="an ending of the future"),  # type: ignore[arg-type]
        pytest.param(an_event_with(pb.UsageEvent(reported=TokenUsage(input_tokens=-1))), id="a negative count"),
        pytest.param(an_event_with(pb.UsageEvent(delivered=TokenUsage(output_tokens=2**62))), id="a senseless count"),
    ],
)
async def test_an_event_that_breaks_a_rule_is_rejected(running: Running, event: pb.UsageEvent) -> None:
    (outcome,) = await running.record(event)

    assert (outcome.kind, bool(outcome.detail)) == (REJECTED, True)
    assert ((await running.balance()).seq, await running.violations()) == (0, [])


async def test_a_call_of_another_account_is_rejected(running: Running) -> None:
    event, foreign = an_event_pb(), an_event_pb(account_id="somebody else")
    foreign.call_id = event.call_id

    (first,), (second,), (third,) = [await running.record(each) for each in (event, foreign, event)]

    assert [(each.kind, each.repeated) for each in (first, second, third)] == [
        (POSTED, False),
        (REJECTED, False),
        (POSTED, True),
    ]
    assert ((await running.balance("somebody else")).seq, await running.violations()) == (0, [])


async def test_a_call_without_a_posting_is_void_and_stays_so(running: Running) -> None:
    posted, unknown = an_event_pb(), new_id()
    await running.record(posted)

    outcomes = [await running.resolve(posted.call_id, unknown) for _ in range(2)]

    expected = [
        pb.CallOutcome(call_id=posted.call_id, kind=pb.CallOutcome.KIND_POSTED, charged_nano_usd=COST),
        pb.CallOutcome(call_id=unknown, kind=pb.CallOutcome.KIND_VOID),
    ]
    assert [expected, expected] == outcomes


async def test_usage_after_its_void_marker_is_charged_and_late(running: Running) -> None:
    event = an_event_pb(held_nano_usd=1)
    await running.resolve(event.call_id)

    (outcome,) = await running.record(event)
    (resolved,) = await running.resolve(event.call_id)

    assert (outcome.kind, outcome.charged_nano_usd) == (POSTED, COST)
    assert (resolved.kind, resolved.charged_nano_usd) == (pb.CallOutcome.KIND_POSTED, COST)
    listed = await running.admin.usage.ListUsage(usage_pb.ListUsageRequest(account_id=ACCOUNT), timeout=TIMEOUT_S)
    assert [list(record.flags) for record in listed.records] == [["late", "over_hold"]]
    assert await running.violations() == []


async def test_a_race_between_usage_and_its_void_is_never_both_silently(running: Running) -> None:
    events = [an_event_pb() for _ in range(100)]

    await asyncio.gather(
        *(work for event in events for work in (running.resolve(event.call_id), running.record(event)))
    )

    assert ((await running.balance()).balance_nano_usd, await running.violations()) == (-100 * COST, [])


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_out_of_bounds_is_refused(running: Running, count: int) -> None:
    with pytest.raises(InvalidRequestError):
        await running.record(*[an_event_pb()] * count)
    with pytest.raises(InvalidRequestError):
        await running.resolve(*[new_id()] * count)


async def test_a_thousand_events_fit(running: Running) -> None:
    outcomes = await running.record(*(an_event_pb() for _ in range(1_000)))

    assert {POSTED} == {each.kind for each in outcomes}
    assert (await running.balance()).balance_nano_usd == -1_000 * COST


async def test_only_ids_can_be_resolved(running: Running) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await running.resolve(new_id(), "x")

    assert [violation.field for violation in caught.value.violations] == ["call_ids[1]"]


async def test_holds_are_closed_by_postings_of_any_charge(tmp_path: Path) -> None:
    auth = ScriptedAuth()
    async with running_metering(tmp_path, auth) as running:
        events = [an_event_pb(), an_event_pb(ending=pb.ENDING_FAILED_BEFORE_CONTENT)]
        await running.record(*events)
        await auth.until_closed(*(event.call_id for event in events))

    assert auth.balances == {ACCOUNT: -COST}


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(pb.RegisterPriceBookRequest(version=VERSION), id="no prices"),
        pytest.param(
            pb.RegisterPriceBookRequest(version=VERSION, prices=[pb.ProfilePrice(profile="a")]), id="another version"
        ),
        pytest.param(
            pb.RegisterPriceBookRequest(version=VERSION, prices=[pb.ProfilePrice(profile="a")] * 2),
            id="a profile twice",
        ),
        pytest.param(
            pb.RegisterPriceBookRequest(version=VERSION, prices=[pb.ProfilePrice(profile="a", input_nano_usd=-1)]),
            id="a negative price",
        ),
        pytest.param(pb.RegisterPriceBookRequest(version=VERSION, prices=[pb.ProfilePrice()]), id="no profile"),
    ],
)
async def test_a_wrong_price_book_is_refused(running: Running, request_: pb.RegisterPriceBookRequest) -> None:
    with pytest.raises(InvalidRequestError):
        await running.inference.RegisterPriceBook(request_, timeout=TIMEOUT_S)
