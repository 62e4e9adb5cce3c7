"""What is the embedded ledger's own: its file, its triggers, its lock, its bounded queue.

Owns what no other store has; what every store promises is in test_ledger_store.py.
"""

import asyncio
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.metering.adapters.sqlite_ledger import SqliteLedger, open_ledger
from services.metering.adapters.sqlite_schema import APPEND_ONLY_TABLES
from services.metering.charging import UsageEvent
from services.metering.migrations import UnknownSchemaError
from services.metering.ports import BalanceEvent, LedgerTransaction, Rejection
from services.metering.usage import OutcomeKind, RecordOutcome
from services.runtime.errors import StoreUnavailableError
from services.runtime.ids import new_id
from tests.contract.metering.building import (
    ACCOUNT,
    NOW_US,
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


async def test_a_full_queue_refuses_at_once(path: Path) -> None:
    async with open_ledger(path, write_timeout_s=10.0) as store:
        gate = threading.Event()
        running = [asyncio.ensure_future(store.commit(lambda _: gate.wait(10))) for _ in range(6_000)]
        await asyncio.sleep(0)
        refused = sum(task.done() and isinstance(task.exception(), StoreUnavailableError) for task in running)
        gate.set()
        await asyncio.gather(*running, return_exceptions=True)

    assert refused >= 1_000
