"""The embedded ledger: SQLite through its own driver, full fsync, one writer thread, reads beside it.

Owns connections, threads and what counts as a failure of the store; refuses to decide anything about money.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from services.metering.adapters import sqlite_reads, sqlite_schema
from services.metering.adapters.group_commit import GroupCommitter
from services.metering.adapters.notice_tail import NoticeTail
from services.metering.adapters.sqlite_snapshot import SqliteSnapshot
from services.metering.adapters.sqlite_transaction import SqliteTransaction
from services.metering.ledger import Customer
from services.metering.migrations import UnknownSchemaError
from services.metering.ports import (
    BalanceNotice,
    EntryRow,
    Footprint,
    LedgerSnapshot,
    LedgerTransaction,
    NoticeClaim,
    PageQuery,
)
from services.metering.pricing import PriceBook
from services.runtime.errors import StoreUnavailableError

T = TypeVar("T")
_RETRY_IN = timedelta(seconds=1)
_LOCK_WAIT_S = 2.0  # another process (a backup, a person with a shell) may hold the file for a moment
_READERS = 2


def is_store_failure(error: BaseException) -> bool:
    """Whether SQLite could not do its work (locked, full, broken), as opposed to a statement that was wrong."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _connect(path: Path, *, is_reader: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA recursive_triggers = ON")  # so that INSERT OR REPLACE meets the append-only triggers
    connection.execute("PRAGMA wal_autocheckpoint = 4000")  # 16 MB: a page that many groups touch is copied once
    # 4 MB of pages: ids grow with time, so writes meet pages that are in it, and memory levels off soon after start.
    connection.execute("PRAGMA cache_size = -4096")
    if is_reader:
        connection.execute("PRAGMA query_only = ON")
    return connection


class _WriteDatabase:
    """The writer thread's connection, reopened after a failure that it did not survive."""

    def __init__(self, path: Path, tail: NoticeTail) -> None:
        self._path = path
        self._tail = tail
        self._connection: sqlite3.Connection | None = None
        self._transaction: SqliteTransaction | None = None
        self._books: dict[str, PriceBook] = {}

    def begin(self, _: Sequence[Footprint | None] = ()) -> SqliteTransaction:
        if self._connection is None:
            self._connection = _connect(self._path, is_reader=False)
        self._connection.execute("BEGIN IMMEDIATE")
        self._transaction = SqliteTransaction(self._connection, self._books)
        return self._transaction

    def commit(self) -> None:
        assert self._connection is not None
        transaction = self._transaction
        assert transaction is not None
        transaction.flush()
        self._connection.execute("COMMIT")
        self._tail.committed(transaction.notices, transaction.forgotten_up_to)

    def rollback(self) -> None:
        self._tail.lose()  # what was about to be committed may have landed
        self._books.clear()  # a book may have been read that is gone now
        if self._connection is None:
            return
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Readers:
    """Threads with a reading connection each."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="ledger-reader")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def run(self, read: Callable[[sqlite3.Connection], T], timeout_s: float | None) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                return await loop.run_in_executor(self._executor, self._read, read)
        except TimeoutError as error:
            raise StoreUnavailableError("the ledger did not answer in time", retry_in=_RETRY_IN) from error
        except sqlite3.DatabaseError as error:
            if not is_store_failure(error):
                raise
            raise StoreUnavailableError("the ledger cannot be read now", retry_in=_RETRY_IN) from error

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _connect(self._path, is_reader=True)
            self._connections.append(connection)
        connection.execute("BEGIN")
        try:
            return read(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)
        for connection in self._connections:
            connection.close()


class SqliteLedger:
    """The ledger in one file; see `LedgerStore`."""

    def __init__(self, path: Path, *, write_timeout_s: float, read_timeout_s: float) -> None:
        self._tail = NoticeTail()
        self._committer: GroupCommitter[LedgerTransaction] = GroupCommitter(
            _WriteDatabase(path, self._tail), is_store_failure, timeout_s=write_timeout_s
        )
        self._readers = _Readers(path, _READERS)
        self._inspectors = _Readers(path, 1)
        self._read_timeout_s = read_timeout_s
        self._delivered_up_to = 0

    def on_commit(self, notify: Callable[[], None]) -> None:
        self._committer.on_commit(notify)

    async def commit(
        self,
        job: Callable[[LedgerTransaction], T],
        timeout_s: float | None = None,
        footprint: Footprint | None = None,
    ) -> T:
        return await self._committer.commit(job, timeout_s, footprint)

    def commit_soon(self, job: Callable[[LedgerTransaction], object]) -> None:
        self._committer.commit_soon(job)

    async def customer(self, account_id: str) -> Customer:
        return await self._read(lambda connection: sqlite_reads.read_customer(connection, account_id))

    async def entries(self, query: PageQuery) -> list[EntryRow]:
        return await self._read(lambda connection: sqlite_reads.read_entries(connection, query))

    async def notices(self, after_row_id: int, limit: int) -> list[BalanceNotice]:
        known = self._tail.after(after_row_id, limit)
        if known is not None:
            return known
        return await self._read(lambda connection: sqlite_reads.read_notices(connection, after_row_id, limit))

    @asynccontextmanager
    async def claim_notices(self, limit: int) -> AsyncIterator[NoticeClaim]:
        yield _Claim(self, await self.notices(self._delivered_up_to, limit))

    async def is_delivered(self, mark: int) -> bool:
        return mark <= self._delivered_up_to

    def delivered(self, up_to_row_id: int, acknowledged_seqs: Mapping[str, int]) -> None:
        """Deletes these rows of the outbox with the next group; lost in a crash, they are sent again."""
        self._delivered_up_to = up_to_row_id

        def forget(transaction: LedgerTransaction) -> None:
            assert isinstance(transaction, SqliteTransaction)
            transaction.forget_notices(up_to_row_id, acknowledged_seqs)

        self._committer.commit_soon(forget)

    async def inspect(self, inspection: Callable[[LedgerSnapshot], T]) -> T:
        return await self._inspectors.run(lambda connection: inspection(SqliteSnapshot(connection)), None)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        return await self._readers.run(read, self._read_timeout_s)

    async def close(self) -> None:
        """Finishes queued writes and closes every connection."""
        await self._committer.close()
        await self._readers.close()
        await self._inspectors.close()


class _Claim:
    """See `NoticeClaim`: one process owns the file, so nobody has to be kept away. Rows are sent in order."""

    def __init__(self, ledger: SqliteLedger, notices: Sequence[BalanceNotice]) -> None:
        self._ledger = ledger
        self.notices = notices

    async def delivered(self, notices: Sequence[BalanceNotice], acknowledged_seqs: Mapping[str, int]) -> None:
        self._ledger.delivered(notices[-1].row_id, acknowledged_seqs)


@asynccontextmanager
async def open_ledger(
    path: Path, *, write_timeout_s: float = 2.0, read_timeout_s: float = 10.0
) -> AsyncIterator[SqliteLedger]:
    """The ledger in a file, made if it is not there. Raises UnknownSchemaError for a file that is none, or of another
    version."""
    await asyncio.to_thread(_prepare, path)
    ledger = SqliteLedger(path, write_timeout_s=write_timeout_s, read_timeout_s=read_timeout_s)
    try:
        yield ledger
    finally:
        await ledger.close()


def _prepare(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with contextlib.closing(_connect(path, is_reader=False)) as connection:
            sqlite_schema.prepare(connection)
    except sqlite3.DatabaseError as error:
        raise UnknownSchemaError(f"{path} cannot be used as a ledger: {error}") from error
    path.chmod(0o600)
