"""Where a process keeps accounts, from its settings: in a file, or in PostgreSQL for several processes.

Owns that choice; refuses to know what a store does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.auth_and_limits.adapters.sql_accounts import SqlAccounts
from services.auth_and_limits.adapters.sql_database import DECISION_S, SqliteDatabase
from services.auth_and_limits.ports import AccountStore, Alone, ChangeFeed
from services.auth_and_limits.settings import Settings
from services.runtime.ids import new_id


@asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncIterator[tuple[AccountStore, ChangeFeed]]:
    """The store and what other processes change in it, open until the context ends. Raises AccountSchemaError."""
    if settings.postgres_url is not None:
        url = settings.postgres_url.get_secret_value()
        async with open_shared(url, settings.store_timeout_s, may_migrate=settings.migrate) as opened:
            yield opened
        return
    path = settings.data_dir / "auth" / "accounts.sqlite3"
    database = await SqliteDatabase.open(path, may_migrate=settings.migrate)
    store = SqlAccounts(database, settings.store_timeout_s)
    try:
        yield store, Alone()
    finally:
        await store.close()


@asynccontextmanager
async def open_shared(
    url: str, decision_s: float = DECISION_S, *, may_migrate: bool = True
) -> AsyncIterator[tuple[AccountStore, ChangeFeed]]:
    """The store on PostgreSQL. A server that does not answer yet is waited for while the process already runs."""
    # Loaded where it is used: a process on embedded stores starts without the driver.
    from services.auth_and_limits.adapters.sql_postgres import LOST, PostgresDatabase
    from services.auth_and_limits.adapters.sql_replicas import Replicas

    replicas = Replicas(new_id())
    database = PostgresDatabase(url, replicas, may_migrate=may_migrate)
    store = SqlAccounts(database, decision_s)
    listening: asyncio.Task[None] | None = None
    try:
        await database.prepare()
        # No TaskGroup: it would wrap whatever ends the body. This work catches all that a server can do to it.
        listening = asyncio.create_task(replicas.run(database.connect, store.changed_since, LOST))
        listening.add_done_callback(replicas.note_end)
        await replicas.refresh()
        yield store, replicas
    finally:
        if listening is not None:
            listening.cancel()
            await asyncio.wait([listening])
        await store.close()
