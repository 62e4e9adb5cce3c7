"""Reports from the embedded ledger: a reading connection and a thread of their own, beside those that calls need.

Owns that connection and the time limit; refuses to know what is asked.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from services.metering.adapters import sqlite_rows as rows
from services.metering.adapters.sql_reports import Dialect, Query, Row, SqlReports
from services.runtime.errors import StoreUnavailableError

_RETRY_IN = timedelta(seconds=1)
_TIMEOUT_S = 20.0
_STEPS_BETWEEN_LOOKS = 100_000  # of SQLite's machine: a few milliseconds
DIALECT = Dialect(
    select_usage=rows.SELECT_USAGE,
    select_transfer=rows.SELECT_TRANSFER,
    text_id="{}",
    id_value="?",
    day="strftime('%Y-%m-%d', recorded_at_us / 1000000, 'unixepoch')",
    hour="strftime('%Y-%m-%dT%H', recorded_at_us / 1000000, 'unixepoch')",
)


class SqliteReports(SqlReports):
    """See `Reports`."""

    def __init__(self, path: Path, *, timeout_s: float = _TIMEOUT_S) -> None:
        super().__init__(DIALECT)
        self._path = path
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ledger-reports")
        self._connection: sqlite3.Connection | None = None

    async def _read(self, *queries: Query) -> list[list[Row]]:
        loop = asyncio.get_running_loop()
        given_up = False

        def is_over() -> bool:
            return given_up

        def run() -> list[list[Row]]:
            connection = self._connection or self._connect()
            connection.set_progress_handler(is_over, _STEPS_BETWEEN_LOOKS)
            return _one_view(connection, queries)

        try:
            async with asyncio.timeout(self._timeout_s):
                return await loop.run_in_executor(self._executor, run)
        except TimeoutError as error:
            raise StoreUnavailableError("the report took too long", retry_in=_RETRY_IN) from error
        except sqlite3.DatabaseError as error:
            raise StoreUnavailableError("the ledger cannot be read now", retry_in=_RETRY_IN) from error
        finally:
            given_up = True  # a statement that nobody waits for ends at its next look

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=2.0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA query_only = ON")
        self._connection = connection
        return connection

    async def close(self) -> None:
        """Closes the connection once nothing runs on it."""
        await asyncio.to_thread(self._executor.shutdown)
        if self._connection is not None:
            self._connection.close()


def _one_view(connection: sqlite3.Connection, queries: Sequence[Query]) -> list[list[Row]]:
    connection.execute("BEGIN")
    try:
        return [connection.execute(query.statement, query.values).fetchall() for query in queries]
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@asynccontextmanager
async def open_reports(path: Path) -> AsyncIterator[SqliteReports]:
    """Reports from a ledger file that is open already."""
    reports = SqliteReports(path)
    try:
        yield reports
    finally:
        await reports.close()
