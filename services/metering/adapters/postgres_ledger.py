"""The ledger at scale: PostgreSQL, one writing session per replica, any number of replicas.

Owns sessions, threads and the claim of the outbox; refuses to decide anything about money.
"""

import contextlib
import datetime
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

from services.metering.adapters import postgres_reads, postgres_schema
from services.metering.adapters import postgres_rows as rows
from services.metering.adapters.group_commit import GroupCommitter
from services.metering.adapters.postgres_connection import (
    WRITER_ROLE,
    BlockingConnection,
    Limits,
    connect,
    is_conflict,
    is_store_failure,
)
from services.metering.adapters.postgres_readers import PostgresReaders
from services.metering.adapters.postgres_snapshot import PostgresSnapshot
from services.metering.adapters.postgres_transaction import PostgresTransaction
from services.metering.ledger import Customer
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
_READERS = 2
_SHARDS = 64  # of the balances that all customers share; a replica takes one of them
_ROLLBACK_S = 0.5
_CALLS = Limits()
_OPENING = Limits(connect_s=15.0, command_s=60.0)
_CLAIMS = Limits(idle_in_transaction_s=20.0)  # a claim is kept while auth-and-limits is told
_INSPECTIONS = Limits(command_s=3_600.0, idle_in_transaction_s=600.0)

_CLAIM = f"{rows.SELECT_NOTICE} ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED"
_FORGET = "DELETE FROM outbox WHERE id = ANY ($1::bigint[])"
_ACKNOWLEDGE = """
INSERT INTO acknowledged AS known (account_id, seq)
SELECT account_id, seq FROM unnest($1::text[], $2::bigint[]) AS heard (account_id, seq) ORDER BY account_id
ON CONFLICT (account_id) DO UPDATE SET seq = greatest(known.seq, excluded.seq)"""


class _WriteDatabase:
    """The writer thread's session; opened anew after a failure that it did not survive."""

    def __init__(self, url: str) -> None:
        self._connection = BlockingConnection(lambda: connect(url, _CALLS))
        self._shard = secrets.randbelow(_SHARDS)
        self._books: dict[str, PriceBook] = {}
        self._transaction: PostgresTransaction | None = None

    def begin(self, footprints: Sequence[Footprint | None]) -> PostgresTransaction:
        self._connection.open()
        self._transaction = PostgresTransaction(self._connection, self._books, self._shard)
        self._transaction.begin(footprints)
        return self._transaction

    def commit(self) -> None:
        assert self._transaction is not None
        self._transaction.flush()
        self._connection.run("COMMIT")

    def rollback(self) -> None:
        self._books.clear()  # a book may have been read that is gone now
        try:
            if self._connection.is_in_transaction:
                self._connection.run("ROLLBACK", timeout_s=_ROLLBACK_S)
        except Exception:  # noqa: BLE001 - whatever it is: a session that cannot even do this is of no use
            self._connection.disconnect()

    def close(self) -> None:
        self._connection.close()


class PostgresLedger:
    """The ledger in PostgreSQL; see `LedgerStore`."""

    def __init__(self, url: str, *, write_timeout_s: float, read_timeout_s: float) -> None:
        self._url = url
        self._committer: GroupCommitter[LedgerTransaction] = GroupCommitter(
            _WriteDatabase(url), is_store_failure, is_conflict=is_conflict, timeout_s=write_timeout_s
        )
        self._readers = PostgresReaders(url, _CALLS, _READERS, "ledger-reader")
        self._inspectors = PostgresReaders(url, _INSPECTIONS, 1, "ledger-inspector")
        self._read_timeout_s = read_timeout_s
        self._claims: Any = None  # the session on which rows of the outbox are claimed

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
        return await self._read(lambda connection: postgres_reads.read_customer(connection, account_id))

    async def entries(self, query: PageQuery) -> list[EntryRow]:
        return await self._read(lambda connection: postgres_reads.read_entries(connection, query))

    async def notices(self, after_row_id: int, limit: int) -> list[BalanceNotice]:
        return await self._read(lambda connection: postgres_reads.read_notices(connection, after_row_id, limit))

    async def is_delivered(self, mark: int) -> bool:
        return mark == 0 or await self._read(lambda each: postgres_reads.is_gone_from_outbox(each, mark))

    async def inspect(self, inspection: Callable[[LedgerSnapshot], T]) -> T:
        return await self._inspectors.run(lambda connection: inspection(PostgresSnapshot(connection)), None)

    async def _read(self, read: Callable[[BlockingConnection], T]) -> T:
        return await self._readers.run(read, self._read_timeout_s)

    @asynccontextmanager
    async def claim_notices(self, limit: int) -> AsyncIterator[NoticeClaim]:
        with _as_unavailable():
            if self._claims is None or self._claims.is_closed():
                self._claims = await connect(self._url, _CLAIMS)
            session = self._claims
        try:
            with _as_unavailable():
                await session.execute("BEGIN")
                claim = _Claim(session, [rows.notice(row) for row in await session.fetch(_CLAIM, limit)])
            yield claim
            with _as_unavailable():
                if session.is_in_transaction():
                    await session.execute("ROLLBACK")
        except BaseException:  # the server gives back what a session held that ended
            session.terminate()
            raise

    async def add_months(self, today: datetime.date) -> None:
        """Makes the partitions of the coming months, where they are missing. Raises StoreUnavailableError."""
        with _as_unavailable():
            connection = await connect(self._url, _CALLS)
            try:
                await postgres_schema.add_months(connection, today)
            finally:
                connection.terminate()

    async def close(self) -> None:
        """Finishes queued writes and closes every session."""
        await self._committer.close()
        await self._readers.close()
        await self._inspectors.close()
        if self._claims is not None:
            self._claims.terminate()


class _Claim:
    """See `NoticeClaim`: rows that a transaction keeps locked, and that others skip."""

    def __init__(self, session: Any, notices: Sequence[BalanceNotice]) -> None:
        self._session = session
        self.notices = notices

    async def delivered(self, notices: Sequence[BalanceNotice], acknowledged_seqs: Mapping[str, int]) -> None:
        with _as_unavailable():
            await self._session.execute(_FORGET, [notice.row_id for notice in notices])
            await self._session.execute(_ACKNOWLEDGE, list(acknowledged_seqs), list(acknowledged_seqs.values()))
            await self._session.execute("COMMIT")


@contextlib.contextmanager
def _as_unavailable() -> Any:
    try:
        yield
    except Exception as error:
        if is_store_failure(error) or is_conflict(error):
            raise StoreUnavailableError("the ledger cannot be reached now", retry_in=_RETRY_IN) from error
        raise


async def prepare(url: str, today: datetime.date, *, may_migrate: bool = True) -> None:
    """Brings the database to the newest revision. Raises UnknownSchemaError, or StoreUnavailableError."""
    with _as_unavailable():
        connection = await connect(url, _OPENING, as_writer=False)
        try:
            await postgres_schema.prepare(connection, may_migrate=may_migrate)
            await connection.execute(f"SET ROLE {WRITER_ROLE}")
            await postgres_schema.add_months(connection, today)
        finally:
            connection.terminate()


@asynccontextmanager
async def open_postgres_ledger(
    url: str, *, write_timeout_s: float = 2.0, read_timeout_s: float = 10.0, may_migrate: bool = True
) -> AsyncIterator[PostgresLedger]:
    """The ledger in a database, made if it is not there. Raises UnknownSchemaError, or StoreUnavailableError."""
    await prepare(url, datetime.datetime.now(datetime.UTC).date(), may_migrate=may_migrate)
    ledger = PostgresLedger(url, write_timeout_s=write_timeout_s, read_timeout_s=read_timeout_s)
    try:
        yield ledger
    finally:
        await ledger.close()
