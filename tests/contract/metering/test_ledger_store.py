"""What every ledger store promises: append-only, one transaction per group, failures that leave nothing behind.

Owns the promises of ports.py on the embedded store; refuses to test money rules.
"""

import asyncio
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.metering import usage
from services.metering.adapters.sqlite_ledger import SqliteLedger, open_ledger
from services.metering.adapters.sqlite_schema import APPEND_ONLY_TABLES
from services.metering.charging import UsageEvent
from services.metering.ledger import CreditKind
from services.metering.migrations import UnknownSchemaError
from services.metering.ports import BalanceEvent, LedgerTransaction, Rejection
from services.metering.usage import Moment, OutcomeKind, RecordOutcome
from services.runtime.errors import StoreUnavailableError
from services.runtime.ids import new_id
from tests.contract.metering.building import (
    ACCOUNT,
    DAY_US,
    NOW_US,
    VERSION,
    Bookkeeper,
    a_credit,
    an_event,
)

COST = 26_400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "with a space" / "ledger.sqlite3"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteLedger]:
    async with open_ledger(path, write_timeout_s=10.0) as ledger:
        yield ledger


@pytest.fixture
async def books(store: SqliteLedger) -> Bookkeeper:
    bookkeeper = Bookkeeper(store)
    await bookkeeper.register()
    return bookkeeper


async def fill(books: Bookkeeper) -> None:
    """A row in every table."""
    await books.grant(a_credit())
    await books.record(an_event(), Rejection("x", "why", "{}"))
    await books.resolve(new_id())
    event = BalanceEvent(ACCOUNT, 10, 5, NOW_US)
    await books.store.commit(lambda transaction: transaction.add_balance_event(event))


@pytest.mark.parametrize("table", APPEND_ONLY_TABLES)
async def test_nothing_on_record_is_updated_deleted_or_replaced(books: Bookkeeper, path: Path, table: str) -> None:
    await fill(books)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA recursive_triggers = ON")
    (column, *_) = (row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
    for statement in (
        f"UPDATE {table} SET {column} = {column}",
        f"DELETE FROM {table}",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


async def test_a_file_of_another_version_is_not_served(books: Bookkeeper, store: SqliteLedger, path: Path) -> None:
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(UnknownSchemaError, match="schema version 99"):
        async with open_ledger(path):
            pass


async def test_a_file_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.commit()
    connection.close()

    with pytest.raises(UnknownSchemaError):
        async with open_ledger(path):
            pass


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.sqlite3"
    path.write_bytes(b"no database " * 1000)

    with pytest.raises(UnknownSchemaError, match=r"torn\.sqlite3"):
        async with open_ledger(path):
            pass


async def test_the_file_is_private_and_fully_synchronous(store: SqliteLedger, path: Path) -> None:
    def pragmas(transaction: LedgerTransaction) -> list[object]:
        connection: sqlite3.Connection = transaction._sql  # type: ignore[attr-defined]
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    assert (await store.commit(pragmas), stat.S_IMODE(path.stat().st_mode)) == (["wal", 2], 0o600)


async def test_a_job_that_raises_leaves_nothing_and_harms_no_other(books: Bookkeeper, store: SqliteLedger) -> None:
    gate = threading.Event()

    def wait(_: LedgerTransaction) -> None:
        assert gate.wait(10)

    def spoil(transaction: LedgerTransaction) -> None:
        transaction.customer(ACCOUNT).receive(CreditKind.PURCHASE, 1)
        transaction.add_void_markers(["0199b000-0000-7000-8000-00000000dead"], NOW_US)
        raise KeyError("of its own making")

    first = asyncio.ensure_future(store.commit(wait))
    await asyncio.sleep(0)
    group = asyncio.gather(
        books.record(an_event()), store.commit(spoil), books.grant(a_credit()), return_exceptions=True
    )
    await asyncio.sleep(0)
    gate.set()
    await first
    outcomes = await group

    assert [list, KeyError] == [type(outcome) for outcome in outcomes[:2]]
    assert await books.balance() == (1_000_000_000 - COST, 1_000_000_000, 0)
    assert set() == await store.commit(lambda tx: tx.void_calls(["0199b000-0000-7000-8000-00000000dead"]))


async def test_a_locked_file_is_unavailable_and_recovers(path: Path) -> None:
    async with open_ledger(path, write_timeout_s=0.1) as store:
        books = Bookkeeper(store)
        await books.register()
        event = an_event()
        blocker = sqlite3.connect(path, isolation_level=None, timeout=10)
        blocker.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnavailableError) as caught:
            await books.record(event)
        blocker.execute("ROLLBACK")
        blocker.close()
        async with asyncio.timeout(20):
            while (outcome := await _recorded(books, event)) is None:
                await asyncio.sleep(0.01)

        assert caught.value.retry_in is not None
        assert (outcome.kind, outcome.charged_nano_usd) == (OutcomeKind.POSTED, COST)
        assert await books.balance() == (-COST, 0, 0)


async def _recorded(books: Bookkeeper, event: UsageEvent) -> RecordOutcome | None:
    try:
        (outcome,) = await books.record(event)
    except StoreUnavailableError:
        return None
    return outcome


async def test_a_write_that_was_too_slow_may_land_and_its_resend_finds_it(path: Path) -> None:
    async with open_ledger(path, write_timeout_s=10.0) as store:
        books = Bookkeeper(store)
        await books.register()
        event, gate = an_event(), threading.Event()
        blocked = asyncio.ensure_future(store.commit(lambda _: gate.wait(10)))
        await asyncio.sleep(0)
        moment = Moment(NOW_US, new_id)
        with pytest.raises(StoreUnavailableError):
            await store.commit(lambda tx: usage.record(tx, [event], moment), 0.01)
        gate.set()
        await blocked

        (outcome,) = await books.record(event)

        assert (outcome.is_repeated, outcome.charged_nano_usd) == (True, COST)


async def test_a_full_queue_refuses_at_once(path: Path) -> None:
    async with open_ledger(path, write_timeout_s=10.0) as store:
        gate = threading.Event()
        running = [asyncio.ensure_future(store.commit(lambda _: gate.wait(10))) for _ in range(6_000)]
        await asyncio.sleep(0)
        refused = sum(task.done() and isinstance(task.exception(), StoreUnavailableError) for task in running)
        gate.set()
        await asyncio.gather(*running, return_exceptions=True)

    assert refused >= 1_000


async def test_work_for_later_runs_with_the_next_group_and_survives_a_close(path: Path) -> None:
    async with open_ledger(path) as store:
        await Bookkeeper(store).grant(a_credit())
        async with store.claim_notices(10) as claim:
            await claim.delivered(claim.notices, {ACCOUNT: 1})

    async with open_ledger(path) as store:
        assert await store.notices(0, 10) == []


async def test_everything_committed_is_there_after_a_reopen(path: Path) -> None:
    event = an_event()
    async with open_ledger(path) as store:
        books = Bookkeeper(store)
        await books.register()
        first = (await books.record(event))[0]

    async with open_ledger(path) as store:
        books = Bookkeeper(store)
        (again,) = await books.record(event)

        assert first._replace(is_repeated=True) == again
        assert await books.balance() == (-COST, 0, 0)


async def test_expired_promotions_end_at_a_touch_and_by_the_sweeper(store: SqliteLedger) -> None:
    now = [NOW_US]
    books = Bookkeeper(store, lambda: now[0])
    await books.register()
    soon = {"kind": CreditKind.PROMOTION, "amount_nano_usd": 100_000, "expires_at_us": NOW_US + DAY_US}
    for account_id in ("touched", "swept"):
        await books.grant(a_credit(account_id=account_id, **soon))
        await books.record(an_event(account_id=account_id))
    now[0] += DAY_US

    before = await books.balance("touched")
    await books.record(an_event(account_id="touched"))
    swept = [await books.sweep(), await books.sweep()]

    assert before == (100_000 - COST, 0, 100_000 - COST)
    assert swept == [1, 0]
    assert (await books.balance("touched"), await books.balance("swept")) == ((-COST, 0, 0), (0, 0, 0))


async def test_an_unknown_book_is_none_and_a_known_one_reads_back(books: Bookkeeper, store: SqliteLedger) -> None:
    found, missing = await store.commit(lambda tx: (tx.price_book(VERSION), tx.price_book("0" * 64)))

    assert found is not None
    assert (sorted(found), missing) == (["dragon", "reranker"], None)
