"""What every store's reports promise: whatever way one looks at the money, it is the money of the ledger.

Owns sums, statements and exports on both stores; refuses to test what a call may ask for (tests/rpc/metering).
"""

import csv
import io
import itertools
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal

import pytest

from services.metering import checking, exports, focus, statements
from services.metering.adapters.sqlite_ledger import open_ledger
from services.metering.adapters.sqlite_reports import open_reports
from services.metering.ledger import Transfer, customer_account
from services.metering.ports import LedgerStore, PageQuery, Span
from services.metering.queries import after, cost_lines, ordered
from services.metering.reports import Reports, UsageSelection
from services.metering.stores import Stores
from tests.contract.metering.building import ACCOUNT, DAY_US
from tests.contract.metering.busy_account import START_US, write_past
from tests.postgres_server import PostgresServer

GROUPINGS = ("total", "account", "profile", "key", "application", "upstream", "day", "hour")
MONTHS = ("2026-10", "2026-11", "2026-12", "2027-01")
EVER = Span(0, 1 << 60)
SPAN = Span(START_US, START_US + 200 * DAY_US)
_FILTERS = ("key", "application", "profile", "upstream")  # in the order of the selection's fields
OWN = customer_account(ACCOUNT)


async def _nothing() -> None:
    return None


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stores]:
    """One past for all tests of this module: none of them writes."""
    async with AsyncExitStack() as stack:
        ledger: LedgerStore
        reports: Reports
        if request.param == "sqlite":
            path = tmp_path_factory.mktemp("reports") / "ledger.sqlite3"
            ledger = await stack.enter_async_context(open_ledger(path, write_timeout_s=20.0))
            reports = await stack.enter_async_context(open_reports(path))
        else:
            from services.metering.adapters.postgres_ledger import open_postgres_ledger
            from services.metering.adapters.postgres_reports import open_postgres_reports

            server: PostgresServer = request.getfixturevalue("postgres_session")
            url = server.create_database()
            stack.callback(server.drop_database, url)
            ledger = await stack.enter_async_context(open_postgres_ledger(url, write_timeout_s=20.0))
            reports = await stack.enter_async_context(open_postgres_reports(url))
        await write_past(ledger)
        yield Stores(ledger, reports, _nothing)


one_store = pytest.mark.parametrize("stores", ["sqlite"], indirect=True)
"""For what is the same code on every store."""


async def transfers_of(stores: Stores, account_id: str = ACCOUNT) -> list[Transfer]:
    """The account's part of the ledger: what everything else is held against."""
    return [row.transfer for row in await stores.ledger.entries(PageQuery(account_id, "", None, 100_000))]


def signed(transfer: Transfer) -> int:
    return transfer.amount_nano_usd if transfer.credit == OWN else -transfer.amount_nano_usd


async def test_a_past_is_in_order(stores: Stores) -> None:
    report = await stores.ledger.inspect(lambda snapshot: checking.check(snapshot, ""))
    rules = {transfer.rule for transfer in await transfers_of(stores)}

    assert report.violations == ()
    assert rules >= {"complete", "cut", "grant.purchase", "grant.promotion", "grant.refund", "expire.promotion"}
    assert rules >= {"refund.purchase", "correct.purchase", "correct.credit"}


async def test_sums_of_any_grouping_are_the_charges_of_the_ledger(stores: Stores) -> None:
    charged = [transfer for transfer in await transfers_of(stores) if transfer.call_id is not None]
    expected = sum(transfer.amount_nano_usd for transfer in charged)
    by_profile: dict[str, int] = defaultdict(int)
    for transfer in charged:
        by_profile[transfer.credit] += transfer.amount_nano_usd

    for groupings in itertools.product(GROUPINGS, GROUPINGS):
        groups = await stores.reports.sums(UsageSelection(ACCOUNT, EVER), groupings)
        assert sum(group.charged_nano_usd for group in groups) == expected, groupings
        assert len({(group.group, group.then_group) for group in groups}) == len(groups), groupings
    profiles = await stores.reports.sums(UsageSelection(ACCOUNT, EVER), ("profile", "total"))
    everybody = await stores.reports.sums(UsageSelection("", EVER), ("account", "total"))

    assert {f"revenue:{group.group}": group.charged_nano_usd for group in profiles} == by_profile
    assert {group.group: group.charged_nano_usd for group in everybody}[ACCOUNT] == expected
    assert len(everybody) == 2


async def test_a_filter_takes_what_its_group_has(stores: Stores) -> None:
    for grouping in _FILTERS:
        for group in await stores.reports.sums(UsageSelection(ACCOUNT, EVER), (grouping, "total")):
            lists = [(group.group,) if name == grouping else () for name in _FILTERS]
            wanted = UsageSelection(ACCOUNT, EVER, *lists)
            (found,) = await stores.reports.sums(wanted, ("total", "total"))
            listed = await stores.reports.usage(wanted, "", None, 10_000)

            assert (found.charged_nano_usd, found.calls) == (group.charged_nano_usd, group.calls), (grouping, group)
            assert len(listed) == group.calls


async def test_hours_and_days_are_utc(stores: Stores) -> None:
    hours = ordered(await stores.reports.sums(UsageSelection(ACCOUNT, EVER), ("hour", "day")), ("hour", "day"))

    assert all(hour.group[:10] == hour.then_group and len(hour.group) == len("2026-10-01T00") for hour in hours)
    assert (hours[0].then_group, [hour.group for hour in hours]) == (
        "2026-10-01",
        sorted(hour.group for hour in hours),
    )


@one_store
@pytest.mark.parametrize("groupings", [("key", "upstream"), ("day", "profile")])
async def test_pages_of_groups_have_no_gaps(stores: Stores, groupings: tuple[str, str]) -> None:
    groups = ordered(await stores.reports.sums(UsageSelection(ACCOUNT, EVER), groupings), groupings)
    paged, last = [], None
    while rest := after(groups, groupings, last):
        paged += rest[:3]
        last = (paged[-1].charged_nano_usd, paged[-1].group, paged[-1].then_group)

    assert paged == groups


async def test_a_call_has_its_prices_and_its_transfers(stores: Stores) -> None:
    for record in await stores.reports.usage(UsageSelection(ACCOUNT, EVER), "", None, 40):
        call = await stores.reports.call(record.event.call_id, ACCOUNT)
        assert call is not None
        lines = cost_lines(record.charge.usage, call.price_book[record.event.profile])
        charged = [transfer.amount_nano_usd for transfer in call.transfers]

        assert sum(line.cost_nano_usd for line in lines) == record.charge.nano_usd == sum(charged)
        assert await stores.reports.call(record.event.call_id, "another account") is None


async def test_statements_are_the_ledger_to_the_nano_dollar(stores: Stores) -> None:
    transfers = await transfers_of(stores)
    closing_before = 0
    for month in MONTHS:
        span = statements.span_of(month)
        assert span is not None
        own = [each for each in transfers if span.since_us <= each.posted_at_us < span.until_us]
        statement = statements.statement_of(await stores.reports.statement(ACCOUNT, span))
        lines = [*statement.credits, *statement.charges]

        assert statement.opening_nano_usd == closing_before
        assert statement.opening_nano_usd + sum(line.amount_nano_usd for line in lines) == statement.closing_nano_usd
        assert sum(signed(each) for each in own) == statement.closing_nano_usd - statement.opening_nano_usd
        for line in statement.credits:
            same = [signed(each) for each in own if each.call_id is None and each.rule == line.name]
            assert (line.entries, line.amount_nano_usd) == (len(same), sum(same))
        for line in statement.charges:
            charged = [signed(each) for each in own if each.credit == f"revenue:{line.name}"]
            assert line.amount_nano_usd == sum(charged)
        closing_before = statement.closing_nano_usd
    customer = await stores.ledger.customer(ACCOUNT)

    assert closing_before == customer.balance_nano_usd


async def exported(reports: Reports, format_name: str, cursor: str = "") -> tuple[bytes, list[str]]:
    """The file from a cursor on, and every cursor that came with it."""
    request = exports.resumed(ACCOUNT, format_name, SPAN, cursor, "")
    pieces = [piece async for piece in exports.export(reports, request, "")]
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return b"".join(piece.data for piece in pieces), [piece.cursor for piece in pieces]


def rows_of(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


async def test_an_export_costs_what_the_ledger_says(stores: Stores) -> None:
    text, _ = await exported(stores.reports, "csv")
    rows = rows_of(text)
    payments = {"grant.purchase", "refund.purchase", "correct.purchase", "correct.refund"}
    costs = -sum(signed(each) for each in await transfers_of(stores) if each.rule not in payments)

    assert tuple(rows[0]) == focus.COLUMNS
    assert sum(Decimal(row["BilledCost"]) for row in rows) * 1_000_000_000 == costs
    assert sum(int(row["x_BilledNanoUsd"]) for row in rows) == costs
    for row in rows:
        if row["ListUnitPrice"]:
            assert Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"]) == Decimal(row["ListCost"])
    calls = {row["x_CallId"] for row in rows if row["x_CallId"]}
    assert len(calls) == len(await stores.reports.usage(UsageSelection(ACCOUNT, SPAN), "", None, 10_000))


@one_store
async def test_both_formats_say_the_same(stores: Stores) -> None:
    text, _ = await exported(stores.reports, "csv")
    lines, _ = await exported(stores.reports, "jsonl")

    objects = [json.loads(line, parse_float=Decimal) for line in lines.decode().splitlines()]
    assert [tuple(found) for found in objects] == [focus.COLUMNS] * len(objects)
    for row, found in zip(rows_of(text), objects, strict=True):
        assert {name: "" if value is None else str(value) for name, value in found.items() if name not in _LOOSE} == {
            name: value for name, value in row.items() if name not in _LOOSE
        }


_LOOSE = {name for name in focus.COLUMNS if "Cost" in name or ("Price" in name and name != "SkuPriceId")}


async def test_an_export_goes_on_behind_every_cursor(stores: Stores) -> None:
    format_name = "csv"
    whole, cursors = await exported(stores.reports, format_name)

    assert len(cursors) > 2
    for cursor in cursors[:-1]:
        rest, _ = await exported(stores.reports, format_name, cursor)
        assert whole.endswith(rest)
        assert 0 < len(rest) < len(whole)


@one_store
async def test_no_secret_and_no_formula_is_in_a_file(stores: Stores) -> None:
    text, _ = await exported(stores.reports, "csv")
    lines, _ = await exported(stores.reports, "jsonl")

    for file in (text, lines):
        assert b"mws_live_" not in file
        assert b"[redacted]" in file
    starts = {row[name][:1] for row in rows_of(text) for name in ("Tags", "x_RequestedModel", "ResourceId")}
    assert not starts & set("=+-@")
