"""Reports from the ledger in PostgreSQL: sessions and threads of their own, beside those that calls need.

Owns the dialect and the time limit; refuses to know what is asked.
"""

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.metering.adapters import postgres_rows as rows
from services.metering.adapters.postgres_connection import BlockingConnection, Limits
from services.metering.adapters.postgres_readers import PostgresReaders
from services.metering.adapters.postgres_reads import DAY
from services.metering.adapters.sql_reports import Dialect, Query, Row, SqlReports

_TIMEOUT_S = 20.0
_THREADS = 2
DIALECT = Dialect(
    select_usage=rows.SELECT_USAGE,
    select_transfer=rows.SELECT_TRANSFER,
    text_id="{}::text",
    id_value="?",
    day=DAY,
    hour=DAY.replace("YYYY-MM-DD", 'YYYY-MM-DD"T"HH24'),
)


class PostgresReports(SqlReports):
    """See `Reports`."""

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        super().__init__(DIALECT)
        self._timeout_s = timeout_s
        limits = Limits(command_s=timeout_s, idle_in_transaction_s=timeout_s)
        self._readers = PostgresReaders(url, limits, _THREADS, "ledger-reports")

    async def _read(self, *queries: Query) -> list[list[Row]]:
        def read(connection: BlockingConnection) -> list[list[Row]]:
            return [connection.fetch(_numbered(query.statement), *query.values) for query in queries]

        return await self._readers.run(read, self._timeout_s + 1.0)

    async def close(self) -> None:
        """Closes the sessions once nothing runs on them."""
        await self._readers.close()


@functools.lru_cache(maxsize=256)
def _numbered(statement: str) -> str:
    """`$1`, `$2`, … where the statement has `?`."""
    first, *others = statement.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))


@asynccontextmanager
async def open_postgres_reports(url: str) -> AsyncIterator[PostgresReports]:
    """Reports from a database that is prepared already."""
    reports = PostgresReports(url)
    try:
        yield reports
    finally:
        await reports.close()
