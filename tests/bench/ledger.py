"""What the ledger on PostgreSQL takes per second, beside a bare COPY of the same rows; and how fast it answers.

Owns the load and the figures; refuses to soften either side: the server syncs every commit, the rows are the same."""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from services.metering import checking, usage
from services.metering.adapters import postgres_rows
from services.metering.adapters.postgres_connection import Limits, connect
from services.metering.adapters.postgres_ledger import PostgresLedger, open_postgres_ledger
from services.metering.adapters.postgres_reports import open_postgres_reports
from services.metering.charging import Charge, Ending, UsageEvent
from services.metering.ledger import customer_account
from services.metering.outbox import Outbox
from services.metering.ports import BalanceNotice, Footprint, Span
from services.metering.pricing import ProfilePrice, TokenUsage, canonical_json, price_book_version
from services.metering.usage import Moment
from services.runtime.ids import new_id
from tests.bench.options import Options
from tests.bench.verdict import Verdict
from tests.postgres_server import PostgresServer

TITLE = "the ledger on PostgreSQL"

_EVENTS: Final = 1_000_000
_EVENTS_QUICK: Final = 100_000
_BATCH: Final = 1_000  # the largest RecordUsage
_IN_FLIGHT: Final = 4
_CHUNK: Final = 50_000  # made ahead of the clock, and dropped after it
_ACCOUNTS: Final = 1_000
_MONTHS: Final = 3
_MONTH_US: Final = 30 * 86_400_000_000
_START_US: Final = 1_790_000_000_000_000
_STATEMENTS: Final = 50
_PRICES: Final = [ProfilePrice("dragon", 480, 1080)]
_VERSION: Final = price_book_version(_PRICES)
_DURABLE: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
}
_PER_SECOND: Final = 5_000.0
_OF_COPY: Final = 1 / 25
_STATEMENT_S: Final = 0.2


def run(options: Options) -> dict[str, Any]:
    events = options.ledger_events or (_EVENTS_QUICK if options.quick else _EVENTS)
    server = PostgresServer(**_DURABLE)
    try:
        server.start()
        copied = asyncio.run(_copy(server.create_database(), events))
        return copied | asyncio.run(_record(server.create_database(), events))
    finally:
        server.remove()


def _id_at(instant_us: int) -> str:
    """A UUIDv7 of that instant, so that events spread over the months' partitions."""
    time_digits = f"{instant_us // 1_000:012x}"
    return f"{time_digits[:8]}-{time_digits[8:]}{new_id()[13:]}"


def _chunks(events: int, accounts: Sequence[str]) -> Iterator[list[tuple[int, list[UsageEvent]]]]:
    """Batches with the instant at which each is recorded, some at a time."""
    made = itertools.count()
    for start in range(0, events, _CHUNK):
        batches = []
        for first in range(start, min(start + _CHUNK, events), _BATCH):
            now_us = _START_US + first * _MONTHS * _MONTH_US // events
            batches.append((now_us, [_event(next(made), now_us, accounts) for _ in range(min(_BATCH, events - first))]))
        yield batches


def _event(number: int, now_us: int, accounts: Sequence[str]) -> UsageEvent:
    return UsageEvent(
        call_id=_id_at(now_us),
        account_id=accounts[number * 7919 % len(accounts)],
        key_id="key-1",
        application="assistant",
        operation="generate",
        profile="dragon",
        requested_model="claude-sonnet-4-6",
        upstream="primary",
        attempt=1,
        price_book_version=_VERSION,
        ending=Ending.COMPLETE,
        reported=TokenUsage(100 + number % 900, 20 + number % 300),
        delivered=TokenUsage(100, 20),
        upstream_accepted=True,
        held_nano_usd=1_000_000_000,
        started_at_us=now_us - 2_000_000,
        ended_at_us=now_us,
    )


def _cost(event: UsageEvent) -> int:
    return (event.reported.input_tokens or 0) * 480 + (event.reported.output_tokens or 0) * 1080


async def _copy(url: str, events: int) -> dict[str, Any]:
    """The floor: the same rows into a table without an index, a transaction per batch, and nothing else."""
    async with open_postgres_ledger(url):
        pass  # for its table's shape
    session = await connect(url, Limits(command_s=600.0), as_writer=False)
    await session.execute("CREATE TABLE bare AS SELECT * FROM usage_events")
    elapsed = 0.0
    for batches in _chunks(events, [new_id() for _ in range(_ACCOUNTS)]):
        rows = [
            [postgres_rows.usage_row(event, Charge("complete", event.reported, 1, ()), now_us) for event in batch]
            for now_us, batch in batches
        ]
        began = time.perf_counter()
        for records in rows:
            await session.copy_records_to_table("bare", records=records, columns=postgres_rows.USAGE_COLUMNS)
        elapsed += time.perf_counter() - began
    session.terminate()
    return {"events": events, "copy_per_second": events / elapsed}


class _Auth:
    """Takes balance changes as fast as they come."""

    def __init__(self) -> None:
        self.heard: dict[str, tuple[int, int]] = {}
        self.closed = 0

    async def balances_changed(self, notices: Sequence[BalanceNotice]) -> None:
        for notice in notices:
            if notice.seq > self.heard.get(notice.account_id, (0, 0))[0]:
                self.heard[notice.account_id] = notice.seq, notice.balance_nano_usd
            self.closed += len(notice.closed_call_ids)


async def _record(url: str, events: int) -> dict[str, Any]:
    accounts = [new_id() for _ in range(_ACCOUNTS)]
    expected: dict[str, int] = dict.fromkeys(accounts, 0)
    async with open_postgres_ledger(url, write_timeout_s=600.0) as ledger:
        text = canonical_json(_PRICES)
        await ledger.commit(lambda each: each.add_price_book(_VERSION, text, _START_US), footprint=Footprint())
        auth = _Auth()
        delivering = asyncio.create_task(Outbox(ledger, auth).run())
        elapsed, cpu = 0.0, 0.0
        for batches in _chunks(events, accounts):
            for _, batch in batches:
                for event in batch:
                    expected[event.account_id] -= _cost(event)
            began, cpu_began = time.perf_counter(), time.process_time()
            await _record_all(ledger, batches)
            elapsed, cpu = elapsed + time.perf_counter() - began, cpu + time.process_time() - cpu_began
        async with asyncio.timeout(120):
            while auth.closed < events:
                await asyncio.sleep(0.05)
        delivering.cancel()
        totals = await _totals_agree(url, expected, auth)
        began = time.perf_counter()
        report = await ledger.inspect(lambda snapshot: checking.check(snapshot, ""))
        check_seconds = time.perf_counter() - began
    return {
        "per_second": events / elapsed,
        "client_cpu_us_per_event": cpu / events * 1e6,
        "totals_agree": totals,
        "violations": len(report.violations),
        "checked_transfers": report.checked_transfers,
        "check_seconds": check_seconds,
        "statement_ms": await _statements(url, accounts),
    }


async def _record_all(ledger: PostgresLedger, batches: Sequence[tuple[int, list[UsageEvent]]]) -> None:
    """As inference does: some batches at once, each acknowledged when it is durable."""
    waiting = iter(batches)

    async def runner() -> None:
        for now_us, batch in waiting:
            moment = Moment(now_us, new_id)
            outcomes = await ledger.commit(
                lambda transaction, batch=batch, moment=moment: usage.record(transaction, batch, moment),  # type: ignore[misc]
                footprint=usage.footprint_of(batch),
            )
            assert all(outcome.kind is usage.OutcomeKind.POSTED for outcome in outcomes)

    await asyncio.gather(*(runner() for _ in range(_IN_FLIGHT)))


async def _totals_agree(url: str, expected: dict[str, int], auth: _Auth) -> bool:
    """Usage, transfers, balances and what auth-and-limits heard, against what the load itself added up."""
    session = await connect(url, Limits(command_s=600.0), is_reader=True)
    usage_sums = dict(await session.fetch("SELECT account_id, -sum(charged_nano_usd) FROM usage_events GROUP BY 1"))
    moved = dict(await session.fetch("SELECT customer, -sum(amount_nano_usd) FROM transfers GROUP BY 1"))
    balances = dict(await session.fetch("SELECT account, sum(balance_nano_usd) FROM balances GROUP BY 1"))
    session.terminate()
    ours = {customer_account(account_id): amount for account_id, amount in expected.items()}
    revenue = balances.pop("revenue:dragon")
    heard = {account_id: balance for account_id, (_, balance) in auth.heard.items()}
    return (usage_sums, moved, balances, heard, revenue) == (expected, ours, ours, expected, -sum(ours.values()))


async def _statements(url: str, accounts: Sequence[str]) -> dict[str, float]:
    """A month of one account, each of another one, from the second month on."""
    span = Span(_START_US + _MONTH_US, _START_US + 2 * _MONTH_US)
    took: list[float] = []
    async with open_postgres_reports(url) as reports:
        await reports.statement(accounts[0], span)  # connects
        for account_id in random.Random(7).sample(accounts, _STATEMENTS):
            began = time.perf_counter()
            facts = await reports.statement(account_id, span)
            took.append((time.perf_counter() - began) * 1e3)
            assert facts.opening_nano_usd > facts.closing_nano_usd
    return {"p50": statistics.median(took), "slowest": max(took)}


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(show_header=False)
    statement = result["statement_ms"]
    for name, value in (
        ("events", f"{result['events']:,}"),
        ("a bare COPY of the same rows", f"{result['copy_per_second']:,.0f}/s"),
        ("recorded: rule, postings, balances, outbox", f"{result['per_second']:,.0f}/s"),
        ("CPU of metering", f"{result['client_cpu_us_per_event']:.0f} µs per event"),
        ("usage = transfers = balances = what was announced", "yes" if result["totals_agree"] else "NO"),
        ("ledger check", f"{result['violations']} violations, {result['check_seconds']:.0f} s"),
        ("a month's statement of one account", f"p50 {statement['p50']:.1f} ms, slowest {statement['slowest']:.1f} ms"),
    ):
        table.add_row(name, value)
    console.print(table)


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    return [
        Verdict("usage events per second, of 5,000", result["per_second"] / _PER_SECOND, 1.0),
        Verdict(
            "usage events per second, of 1/25 of a bare COPY",
            result["per_second"] / result["copy_per_second"] / _OF_COPY,
            1.0,
        ),
        Verdict(
            "a month's statement, 200 ms of the slowest", _STATEMENT_S * 1e3 / result["statement_ms"]["slowest"], 1.0
        ),
        Verdict(
            "totals equal the ledger, and no violation", float(result["totals_agree"] and not result["violations"]), 1.0
        ),
    ]
