"""Lists and sums: pages without gaps, totals that equal the ledger.

Owns ListEntries, ListUsage and SummarizeUsage; refuses to test charges.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.metering.v1 import ledger_service_pb2 as ledger_pb
from mws.metering.v1 import metering_service_pb2 as pb
from mws.metering.v1 import usage_service_pb2 as usage_pb

from services.metering import translate
from services.runtime.errors import ForeignAccountError, InvalidRequestError
from tests.contract.metering.building import ACCOUNT, DAY_US, NOW_US, Bookkeeper, an_event
from tests.rpc.metering.serving import TIMEOUT_S, Running, running_metering

COST = 26_400


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_metering(tmp_path) as metering:
        yield metering


async def record(running: Running, **changes: Any) -> pb.UsageEvent:
    event = translate.event_to_pb(an_event(**changes))
    await running.record(event)
    return event


async def entry_pages(running: Running, page_size: int) -> list[list[ledger_pb.Entry]]:
    pages, token = [], ""
    while True:
        request = ledger_pb.ListEntriesRequest(account_id=ACCOUNT, page_size=page_size, page_token=token)
        page = await running.admin.ledger.ListEntries(request, timeout=TIMEOUT_S)
        pages.append(list(page.entries))
        token = page.next_page_token
        if not token:
            return pages


async def test_entries_are_listed_newest_first_without_gaps(running: Running) -> None:
    request = ledger_pb.GrantCreditsRequest(
        account_id=ACCOUNT, idempotency_key="k", amount_nano_usd=10**9, kind=ledger_pb.CREDIT_KIND_PURCHASE
    )
    await running.admin.ledger.GrantCredits(request, timeout=TIMEOUT_S)
    batch = [translate.event_to_pb(an_event()) for _ in range(5)]  # one instant for all five
    await running.record(*batch)
    last = await record(running)

    pages = await entry_pages(running, page_size=2)

    listed = [entry for page in pages for entry in page]
    assert [len(page) for page in pages] == [2, 2, 2, 1]
    assert [last.call_id, *(event.call_id for event in reversed(batch)), ""] == [entry.call_id for entry in listed]
    assert [entry.amount_nano_usd for entry in listed] == [-COST] * 6 + [10**9]
    assert (await running.balance()).balance_nano_usd == sum(entry.amount_nano_usd for entry in listed)
    assert (listed[0].counterpart, listed[0].rule) == ("revenue:dragon", "complete")


async def test_entries_and_usage_of_one_call(running: Running) -> None:
    wanted = await record(running)
    await record(running)

    entries = await running.admin.ledger.ListEntries(
        ledger_pb.ListEntriesRequest(account_id=ACCOUNT, call_id=wanted.call_id), timeout=TIMEOUT_S
    )
    usage = await running.admin.usage.ListUsage(
        usage_pb.ListUsageRequest(account_id=ACCOUNT, call_id=wanted.call_id), timeout=TIMEOUT_S
    )

    assert ([wanted.call_id], [wanted.call_id]) == (
        [entry.call_id for entry in entries.entries],
        [found.event.call_id for found in usage.records],
    )


async def test_a_call_of_another_account_is_not_found(running: Running) -> None:
    foreign = await record(running, account_id="other")

    entries = await running.team.ledger.ListEntries(
        ledger_pb.ListEntriesRequest(call_id=foreign.call_id), timeout=TIMEOUT_S
    )
    usage = await running.team.usage.ListUsage(usage_pb.ListUsageRequest(call_id=foreign.call_id), timeout=TIMEOUT_S)

    assert (len(entries.entries), len(usage.records)) == (0, 0)


async def test_a_call_is_listed_as_it_was_reported(running: Running) -> None:
    event = await record(running, application="app", upstream="", attempt=0, ending=pb.ENDING_FAILED_BEFORE_CONTENT)

    listed = await running.admin.usage.ListUsage(usage_pb.ListUsageRequest(account_id=ACCOUNT), timeout=TIMEOUT_S)

    (found,) = listed.records
    assert (event, "failed_before_content", 0, []) == (
        found.event,
        found.rule,
        found.charged_nano_usd,
        list(found.flags),
    )


async def test_usage_pages_have_no_gaps(running: Running) -> None:
    events = [await record(running) for _ in range(5)]
    seen, token = [], ""
    for _ in range(3):
        request = usage_pb.ListUsageRequest(account_id=ACCOUNT, page_size=2, page_token=token)
        page = await running.admin.usage.ListUsage(request, timeout=TIMEOUT_S)
        seen += [found.event.call_id for found in page.records]
        token = page.next_page_token

    assert ([event.call_id for event in reversed(events)], "") == (seen, token)


async def test_a_token_of_another_filter_is_refused(running: Running) -> None:
    for _ in range(2):
        await record(running)
    first = await running.admin.ledger.ListEntries(
        ledger_pb.ListEntriesRequest(account_id=ACCOUNT, page_size=1), timeout=TIMEOUT_S
    )

    with pytest.raises(InvalidRequestError):
        await running.admin.ledger.ListEntries(
            ledger_pb.ListEntriesRequest(account_id="other", page_token=first.next_page_token), timeout=TIMEOUT_S
        )
    with pytest.raises(InvalidRequestError):
        await running.admin.usage.ListUsage(
            usage_pb.ListUsageRequest(account_id=ACCOUNT, page_token=first.next_page_token), timeout=TIMEOUT_S
        )


async def summarize(running: Running, **request: Any) -> usage_pb.SummarizeUsageResponse:
    response: usage_pb.SummarizeUsageResponse = await running.admin.usage.SummarizeUsage(
        usage_pb.SummarizeUsageRequest(**({"account_id": ACCOUNT} | request)), timeout=TIMEOUT_S
    )
    return response


@pytest.mark.parametrize(
    ("grouping", "groups"),
    [
        pytest.param(usage_pb.USAGE_GROUPING_UNSPECIFIED, [("", 3)], id="one total"),
        pytest.param(usage_pb.USAGE_GROUPING_PROFILE, [("dragon", 3)], id="by profile"),
        pytest.param(usage_pb.USAGE_GROUPING_KEY, [("b", 2), ("a", 1)], id="by key, the dearest first"),
        pytest.param(usage_pb.USAGE_GROUPING_APPLICATION, [("", 3)], id="by application"),
        pytest.param(usage_pb.USAGE_GROUPING_UPSTREAM, [("primary", 3)], id="by upstream"),
    ],
)
async def test_sums_by_group(running: Running, grouping: Any, groups: list[tuple[str, int]]) -> None:
    for key_id in ("a", "b", "b"):
        await record(running, key_id=key_id)
    await record(running, account_id="other")

    summary = await summarize(running, group_by=grouping)

    assert groups == [(group.group, group.calls) for group in summary.groups]
    assert [calls * COST for _, calls in groups] == [group.charged_nano_usd for group in summary.groups]
    assert (TokenUsage(input_tokens=30, output_tokens=60), 3 * COST) == (
        summary.total.charged,
        summary.total.charged_nano_usd,
    )
    assert -summary.total.charged_nano_usd == (await running.balance()).balance_nano_usd


async def test_days_are_utc_and_in_order_and_the_span_excludes_its_end(running: Running) -> None:
    day = NOW_US // DAY_US * DAY_US
    for instant in (day - 1, day, day + DAY_US - 1, day + DAY_US):
        await Bookkeeper(running.store, lambda instant=instant: instant).record(an_event())  # type: ignore[misc]

    summary = await summarize(
        running,
        group_by=usage_pb.USAGE_GROUPING_DAY,
        since=translate.timestamp(day - 1),
        until=translate.timestamp(day + DAY_US),
    )

    assert [(group.group, group.calls) for group in summary.groups] == [("2026-09-20", 1), ("2026-09-21", 2)]
    assert summary.total.calls == 3


async def test_nothing_used_sums_to_nothing(running: Running) -> None:
    summary = await summarize(running)

    assert (0, usage_pb.UsageSummary(charged=TokenUsage())) == (len(summary.groups), summary.total)


@pytest.mark.parametrize(
    ("since_us", "until_us"),
    [
        pytest.param(NOW_US, NOW_US, id="an empty span"),
        pytest.param(NOW_US, NOW_US - 1, id="a span that ends before it starts"),
        pytest.param(NOW_US - 400 * DAY_US - 1, NOW_US, id="more than 400 days"),
    ],
)
async def test_a_senseless_span_is_refused(running: Running, since_us: int, until_us: int) -> None:
    with pytest.raises(InvalidRequestError):
        await summarize(running, since=translate.timestamp(since_us), until=translate.timestamp(until_us))


async def test_a_team_reads_its_own_reports_only(running: Running) -> None:
    await record(running)

    own = await running.team.usage.SummarizeUsage(usage_pb.SummarizeUsageRequest(), timeout=TIMEOUT_S)

    assert own.total.charged_nano_usd == COST
    for call in (
        running.team.usage.SummarizeUsage(usage_pb.SummarizeUsageRequest(account_id="x"), timeout=TIMEOUT_S),
        running.team.usage.ListUsage(usage_pb.ListUsageRequest(account_id="x"), timeout=TIMEOUT_S),
        running.team.ledger.ListEntries(ledger_pb.ListEntriesRequest(account_id="x"), timeout=TIMEOUT_S),
    ):
        with pytest.raises(ForeignAccountError):
            await call
