"""Where a process keeps the ledger, from its settings: in a file, or in PostgreSQL for several processes.

Owns that choice and the patience with a server that is away at the start; refuses to know what a store does.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from services.metering.adapters.sqlite_ledger import open_ledger
from services.metering.adapters.sqlite_reports import open_reports
from services.metering.ports import LedgerStore
from services.metering.reports import Reports
from services.metering.settings import Settings
from services.runtime.errors import StoreUnavailableError

_log = structlog.get_logger()
_RETRY_S = 0.5
_LOOK_AT_MONTHS_S = 6 * 3_600.0


@dataclass(frozen=True, slots=True)
class Stores:
    """The open stores; `upkeep` runs beside them for ever."""

    ledger: LedgerStore
    reports: Reports
    upkeep: Callable[[], Coroutine[None, None, None]]


@asynccontextmanager
async def open_stores(settings: Settings, is_stopping: Callable[[], bool]) -> AsyncIterator[Stores]:
    """The stores, open until the context ends. Waits for a server that does not answer yet.

    Raises UnknownSchemaError, and StoreUnavailableError once the process shall end.
    """
    async with AsyncExitStack() as stack:
        if settings.postgres_url is not None:
            yield await _in_postgres(stack, settings, settings.postgres_url.get_secret_value(), is_stopping)
            return
        path = settings.data_dir / "metering" / "ledger.sqlite3"
        ledger = await stack.enter_async_context(open_ledger(path, write_timeout_s=settings.store_timeout_s))
        yield Stores(ledger, await stack.enter_async_context(open_reports(path)), _nothing)


async def _in_postgres(stack: AsyncExitStack, settings: Settings, url: str, is_stopping: Callable[[], bool]) -> Stores:
    # Loaded where it is used: a process on the embedded store starts without the driver.
    from services.metering.adapters.postgres_ledger import PostgresLedger, open_postgres_ledger
    from services.metering.adapters.postgres_reports import open_postgres_reports

    async def opened() -> PostgresLedger:
        while True:
            try:
                return await stack.enter_async_context(
                    open_postgres_ledger(url, write_timeout_s=settings.store_timeout_s, may_migrate=settings.migrate)
                )
            except StoreUnavailableError as error:
                if is_stopping():
                    raise
                _log.warning("ledger.awaited", reason=type(error.__cause__).__name__, retry_in_s=_RETRY_S)
                await asyncio.sleep(_RETRY_S)

    ledger = await opened()

    async def keep_months() -> None:
        while True:
            await asyncio.sleep(_LOOK_AT_MONTHS_S)
            try:
                await ledger.add_months(datetime.datetime.now(datetime.UTC).date())
            except StoreUnavailableError:
                _log.warning("ledger.months_delayed")

    return Stores(ledger, await stack.enter_async_context(open_postgres_reports(url)), keep_months)


async def _nothing() -> None:
    """The file needs no upkeep."""
