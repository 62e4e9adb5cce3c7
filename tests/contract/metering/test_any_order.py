"""Whatever happens in whatever order, crashes included: one posting per call, sums of zero, projections that hold.

Owns the ledger's invariants over sequences; refuses to test single steps.
"""

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.metering import checking
from services.metering.charging import Ending
from services.metering.granting import Credit
from services.metering.ledger import CreditKind
from services.metering.outbox import coalesce
from services.metering.ports import BalanceNotice
from services.metering.pricing import NO_USAGE, TokenUsage
from services.metering.usage import OutcomeKind
from services.runtime.errors import AlreadyExistsError, InvalidRequestError
from tests.contract.metering.building import NOW_US, Bookkeeper, an_event
from tests.contract.metering.places import ClosableStore, Database, File, Place

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
        st.tuples(st.just("delay"), st.integers(1, 3)),
        st.tuples(st.just("arrive"), st.integers(0, 5)),
        st.tuples(st.just("crash"), st.none()),
    ),
    max_size=25,
)


class FileLives:
    """A file whose process may die at any moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lives = 0

    @property
    def place(self) -> File:
        return File(self._folder / f"life-{self._lives}" / "ledger.sqlite3")

    async def crash(self) -> None:
        """Goes on from the files as they are at this moment, which is what a killed process leaves."""
        old, new = (self._folder / f"life-{self._lives + step}" for step in (0, 1))
        shutil.copytree(old, new, ignore=shutil.ignore_patterns("*-shm"))
        self._lives += 1


class DatabaseLives:
    """A database whose sessions may end at any moment."""

    def __init__(self, url: str) -> None:
        self.place = Database(url)

    async def crash(self) -> None:
        """Ends every session in the middle of whatever it does."""
        await self.place.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'mws-metering' AND datname = current_database()"
        )


class Journey:
    """Drives a ledger and remembers what it was told about it."""

    def __init__(self, lives: FileLives | DatabaseLives) -> None:
        self._lives = lives
        self._stack = AsyncExitStack()
        self._now_us = NOW_US
        self.charges: dict[str, int] = {}  # by call id, as first answered
        self.void: set[str] = set()
        self.heard: dict[str, tuple[int, int]] = {}  # by account: (seq, balance), as auth-and-limits would know it
        self.closed: set[str] = set()
        self.on_their_way: list[BalanceNotice] = []
        self.store: ClosableStore
        self.books: Bookkeeper

    async def open(self) -> None:
        self.store = await self._stack.enter_async_context(self._lives.place.open())
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
                self._hear(notice)
            await claim.delivered(claim.notices, {notice.account_id: notice.seq for notice in latest})

    async def _delay(self, limit: int) -> None:
        """Sends without an answer in time: it arrives some time later, and is sent again."""
        async with self.store.claim_notices(limit) as claim:
            self.on_their_way += claim.notices

    async def _arrive(self, index: int) -> None:
        if index < len(self.on_their_way):
            self._hear(self.on_their_way.pop(index))

    def _hear(self, notice: BalanceNotice) -> None:
        """As auth-and-limits does: values if they are newer, closed calls always."""
        if notice.seq > self.heard.get(notice.account_id, (0, 0))[0]:
            self.heard[notice.account_id] = (notice.seq, notice.balance_nano_usd)
        self.closed |= set(notice.closed_call_ids)

    async def _crash(self, _: None) -> None:
        await self._lives.crash()
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        await self.open()

    async def verify(self) -> None:
        report = await self.store.inspect(lambda snapshot: checking.check(snapshot, ""))
        assert report.violations == ()
        while await self.store.notices(0, 1):
            await self._deliver(100)
            await self.store.commit(lambda _: None)  # takes what waited for the next group along
        while self.on_their_way:
            await self._arrive(0)
        for account_id in ACCOUNTS:
            customer = await self.store.customer(account_id)
            assert self.heard.get(account_id, (0, 0)) == (customer.seq, customer.balance_nano_usd)
            assert 0 <= customer.promotional_nano_usd <= max(0, customer.balance_nano_usd)
        assert self.closed == self.charges.keys()
        await self.close()
        await self._verify_rows(self._lives.place)

    async def _verify_rows(self, place: Place) -> None:
        """Without the code under test: the rows themselves."""
        rows = await place.rows("SELECT CAST(call_id AS text), charged_nano_usd, flags LIKE '%late%' FROM usage_events")
        assert sorted((call_id, self.charges[call_id], call_id in self.void) for call_id in self.charges) == sorted(
            (call_id, charged, bool(late)) for call_id, charged, late in rows
        )
        posted = await place.rows(
            "SELECT CAST(call_id AS text), amount_nano_usd FROM transfers WHERE call_id IS NOT NULL"
        )
        assert {call_id: charged for call_id, charged in self.charges.items() if charged} == dict(posted)
        assert await place.rows("SELECT coalesce(sum(balance_nano_usd), 0) FROM balances") == [(0,)]


async def travel(lives: FileLives | DatabaseLives, journey: list[tuple[str, Any]]) -> None:
    ledger = Journey(lives)
    await ledger.open()
    try:
        for step in journey:
            await ledger.take(step)
        await ledger.verify()
    finally:
        await ledger.close()


@given(steps)
def test_the_ledger_holds_after_any_sequence(journey: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(travel(FileLives(Path(folder)), journey))


_EMPTY = (
    "SET session_replication_role = replica; TRUNCATE price_books, usage_events, transfers, grants, void_markers,"
    " rejected_events, balances, promotions, outbox, acknowledged, balance_events, unannounced_balance_events"
)


@settings(max_examples=max(10, settings().max_examples // 50))
@given(journey=steps)
def test_the_ledger_in_a_database_holds_after_any_sequence(
    ledger_place: Database, journey: list[tuple[str, Any]]
) -> None:
    async def from_nothing() -> None:
        session = await ledger_place.session()
        await session.execute(_EMPTY)
        await session.close()
        await travel(DatabaseLives(ledger_place.url), journey)

    asyncio.run(from_nothing())
