"""Threads that read from PostgreSQL, each on a session of its own, so that no reader stands in a writer's way.

Owns threads, sessions and the time limit; refuses to know what is read.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

from services.metering.adapters.postgres_connection import (
    BlockingConnection,
    Limits,
    connect,
    is_store_failure,
)
from services.runtime.errors import StoreUnavailableError

T = TypeVar("T")
_RETRY_IN = timedelta(seconds=1)
BEGIN_VIEW = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresReaders:
    """Runs reading jobs; each sees one consistent view of the ledger."""

    def __init__(self, url: str, limits: Limits, threads: int, name: str) -> None:
        self._url = url
        self._limits = limits
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._local = threading.local()
        self._connections: list[BlockingConnection] = []

    async def run(self, read: Callable[[BlockingConnection], T], timeout_s: float | None, *, is_view: bool = True) -> T:
        """What the job returns. Without `is_view` every statement of the job sees the newest state.

        Raises StoreUnavailableError.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                return await loop.run_in_executor(self._executor, self._read, read, is_view)
        except TimeoutError as error:
            raise StoreUnavailableError("the ledger did not answer in time", retry_in=_RETRY_IN) from error
        except Exception as error:
            if not is_store_failure(error):
                raise
            raise StoreUnavailableError("the ledger cannot be read now", retry_in=_RETRY_IN) from error

    def _read(self, read: Callable[[BlockingConnection], T], is_view: bool) -> T:
        connection: BlockingConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = BlockingConnection(lambda: connect(self._url, self._limits, is_reader=True))
            self._local.connection = connection
            self._connections.append(connection)
        try:
            connection.open()
            if not is_view:
                return read(connection)
            connection.run(BEGIN_VIEW)
            found = read(connection)
            connection.run("ROLLBACK")
        except BaseException:
            connection.disconnect()
            raise
        return found

    async def close(self) -> None:
        """Closes the sessions once nothing runs on them."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._executor.shutdown()
        for connection in self._connections:
            connection.close()
