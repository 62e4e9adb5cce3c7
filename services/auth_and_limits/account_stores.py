"""Where a process keeps accounts, from its settings: in a file, or in PostgreSQL for several processes.

Owns that choice; refuses to know what a store does.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.auth_and_limits.adapters.sql_accounts import SqlAccounts
from services.auth_and_limits.adapters.sql_database import SqliteDatabase
from services.auth_and_limits.ports import AccountStore, Alone, ChangeFeed
from services.auth_and_limits.settings import Settings


@asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncIterator[tuple[AccountStore, ChangeFeed]]:
    """The store and what other processes change in it, open until the context ends. Raises AccountSchemaError."""
    path = settings.data_dir / "auth" / "accounts.sqlite3"
    store = SqlAccounts(await SqliteDatabase.open(path, may_migrate=settings.migrate))
    try:
        yield store, Alone()
    finally:
        await store.close()
