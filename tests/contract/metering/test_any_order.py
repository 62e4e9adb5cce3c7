"""Whatever happens in whatever order, crashes included: one posting per call, sums of zero, projections that hold.

Owns the ledger's invariants over sequences; refuses to test single steps.
"""

import asyncio
import shutil
import sqlite3
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.metering import checking
from services.metering.adapters.sqlite_ledger import SqliteLedger, open_ledger
from services.metering.charging import Ending
from services.metering.granting import Credit
from services.metering.ledger import CreditKind
from services.metering.outbox import coalesce
from services.metering.pricing import NO_USAGE, TokenUsage
from services.metering.usage import OutcomeKind
from services.runtime.errors import AlreadyExistsError, InvalidRequestError
from tests.contract.metering.building import NOW_US, Bookkeeper, an_event

ACCOUNTS = ("a", "b")
CALLS = tuple(f"0199b000-0000-7000-8000-0000000000{index:02}" for index in range(12))
HOUR_US = 3_600_000_000

accounts = st.sampled_from(ACCOUNTS)
calls = st.sampled_from(CALLS)
usages = st.just(NO_USAGE) | st.builds(
    lambda i, o: TokenUsage(i, o), st.integers(0, 50), st.none() | st.integers(0, 50)
)
events = st.builds(
    lambda call_id, ending, reported, accepted, held: an_event(
        call_id=call_id,
        account_id=ACCOUNTS[CALLS.index(call_id) % 2],
        ending=ending,
        reported=reported,
        upstream_accepted=accepted,
        held_nano_usd=held,
    ),
    calls,
    st.sampled_from(Ending),
    usages,
    st.booleans(),
    st.integers(0, 60_000),
)
credits_ = st.builds(
    lambda account_id, key, amount, kind, hours: Credit(
        account_id,
        key,
        amount,
        kind,
        NOW_US + hours * HOUR_US if hours and kind is CreditKind.PROMOTION else None,
    ),
    accounts,
    st.sampled_from(("k1", "k2", "k3", "k4")),
    st.sampled_from((1, 10_000, 60_000, 9_000_000_000_000_000)),
    st.sampled_from(CreditKind),
    st.none() | st.integers(1, 5),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.lists(events, min_size=1, max_size=4)),
        st.tuples(st.just("grant"), credits_),
        st.tuples(st.just("resolve"), st.lists(calls, min_size=1, max_size=3)),
        st.tuples(st.just("later"), st.integers(1, 3)),
        st.tuples(st.just("sweep"), st.none()),
        st.tuples(st.just("deliver"), st.integers(1, 3)),
        st.tuples(st.just("crash"), st.none()),
    ),
    max_size=25,
)


class Journey:
    """Drives a ledger and remembers what it was told about it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lives = 0
        self._stack = AsyncExitStack()
        self._now_us = NOW_US
        self.charges: dict[str, int] = {}  # by call id, as first answered
        self.void: set[str] = set()
        self.heard: dict[str, tuple[int, int]] = {}  # by account: (seq, balance), as auth-and-limits would know it
        self.closed: set[str] = set()
        self.store: SqliteLedger
        self.books: Bookkeeper

    async def open(self) -> None:
        path = self._folder / f"life-{self._lives}" / "ledger.sqlite3"
        self.store = await self._stack.enter_async_context(open_ledger(path, write_timeout_s=20.0))
        self.books = Bookkeeper(self.store, lambda: self._now_us)
        await self.books.register()

    async def close(self) -> None:
        await self._stack.aclose()

    async def take(self, step: tuple[str, Any]) -> None:
        name, argument = step
        await getattr(self, f"_{name}")(argument)

    async def _record(self, batch: list[Any]) -> None:
        for outcome in await self.books.record(*batch):
            assert outcome.kind is OutcomeKind.POSTED
            assert outcome.is_repeated is (outcome.call_id in self.charges)
            assert self.charges.setdefault(outcome.call_id, outcome.charged_nano_usd) == outcome.charged_nano_usd

    async def _grant(self, credit: Credit) -> None:
        try:
            await self.books.grant(credit)
        except (AlreadyExistsError, InvalidRequestError):
            return

    async def _resolve(self, call_ids: list[str]) -> None:
        expected = ["posted" if call_id in self.charges else "void" for call_id in call_ids]
        assert expected == await self.books.resolve(*call_ids)
        self.void |= set(call_ids) - self.charges.keys()

    async def _later(self, hours: int) -> None:
        self._now_us += hours * HOUR_US

    async def _sweep(self, _: None) -> None:
        await self.books.sweep()

    async def _deliver(self, limit: int) -> None:
        """What the outbox does; a crash may come before the acknowledgement is written."""
        async with self.store.claim_notices(limit) as claim:
            if not claim.notices:
                return
            latest = coalesce(claim.notices)
            for notice in latest:
                if notice.seq > self.heard.get(notice.account_id, (0, 0))[0]:
                    self.heard[notice.account_id] = (notice.seq, notice.balance_nano_usd)
                self.closed |= set(notice.closed_call_ids)
            await claim.delivered(claim.notices, {notice.account_id: notice.seq for notice in latest})

    async def _crash(self, _: None) -> None:
        """Goes on from the files as they are at this moment, which is what a killed process leaves."""
        old, new = (self._folder / f"life-{self._lives + step}" for step in (0, 1))
        shutil.copytree(old, new, ignore=shutil.ignore_patterns("*-shm"))
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        self._lives += 1
        await self.open()

    async def verify(self) -> None:
        report = await self.store.inspect(lambda snapshot: checking.check(snapshot, ""))
        assert report.violations == ()
        while await self.store.notices(0, 1):
            await self._deliver(100)
            await self.store.commit(lambda _: None)  # takes what waited for the next group along
        for account_id in ACCOUNTS:
            customer = await self.store.customer(account_id)
            assert self.heard.get(account_id, (0, 0)) == (customer.seq, customer.balance_nano_usd)
            assert 0 <= customer.promotional_nano_usd <= max(0, customer.balance_nano_usd)
        assert self.closed == self.charges.keys()
        await self.close()
        self._verify_rows(self._folder / f"life-{self._lives}" / "ledger.sqlite3")

    def _verify_rows(self, path: Path) -> None:
        """Without the code under test: the rows themselves."""
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT call_id, charged_nano_usd, flags LIKE '%late%' FROM usage_events").fetchall()
        assert sorted((call_id, self.charges[call_id], call_id in self.void) for call_id in self.charges) == sorted(
            (call_id, charged, bool(late)) for call_id, charged, late in rows
        )
        posted = dict(connection.execute("SELECT call_id, amount_nano_usd FROM transfers WHERE call_id IS NOT NULL"))
        assert {call_id: charged for call_id, charged in self.charges.items() if charged} == posted
        assert connection.execute("SELECT coalesce(sum(balance_nano_usd), 0) FROM balances").fetchone() == (0,)
        connection.close()


@given(steps)
def test_the_ledger_holds_after_any_sequence(journey: list[tuple[str, Any]]) -> None:
    async def travel(folder: Path) -> None:
        ledger = Journey(folder)
        await ledger.open()
        try:
            for step in journey:
                await ledger.take(step)
            await ledger.verify()
        finally:
            await ledger.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(travel(Path(folder)))
