"""Where a ledger can be: a file, or a database. What every test of the contract needs of either.

Owns opening, and reading and tampering behind the code's back; refuses to assert anything about money.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import asyncpg  # type: ignore[import-untyped]

from services.metering.adapters.postgres_ledger import open_postgres_ledger
from services.metering.adapters.sqlite_ledger import open_ledger
from services.metering.ports import LedgerStore


class ClosableStore(LedgerStore, Protocol):
    """A store that a test may close early."""

    async def close(self) -> None:
        """Closes it."""


class Place(Protocol):
    """A place for one ledger; opened again, it is the same ledger."""

    def open(self, write_timeout_s: float = 20.0) -> AbstractAsyncContextManager[ClosableStore]:
        """The store."""

    async def tamper(self, *statements: str) -> None:
        """Does what triggers and constraints forbid. Every statement must change something."""

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What is really there."""


class File:
    """A SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, write_timeout_s: float = 20.0) -> AbstractAsyncContextManager[ClosableStore]:
        return open_ledger(self.path, write_timeout_s=write_timeout_s)

    async def tamper(self, *statements: str) -> None:
        connection = sqlite3.connect(self.path, isolation_level=None)
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, statement
        connection.close()

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path)
        found = connection.execute(statement).fetchall()
        connection.close()
        return found


class Database:
    """A PostgreSQL database."""

    liberties = (
        "SET session_replication_role = replica",  # no trigger fires
        "ALTER TABLE transfers DROP CONSTRAINT IF EXISTS transfers_check",
        "ALTER TABLE transfers DROP CONSTRAINT IF EXISTS transfers_amount_nano_usd_check",
    )
    """What lets a superuser do anything."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, write_timeout_s: float = 20.0) -> AbstractAsyncContextManager[ClosableStore]:
        return open_postgres_ledger(self.url, write_timeout_s=write_timeout_s)

    async def tamper(self, *statements: str) -> None:
        session = await self.session()
        for liberty in self.liberties:
            await session.execute(liberty)
        for statement in statements:
            assert not (await session.execute(statement)).endswith(" 0"), statement
        await session.close()

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        session = await self.session()
        found: Sequence[Any] = await session.fetch(statement)
        await session.close()
        return [tuple(row) for row in found]

    async def session(self) -> Any:
        """A session of the superuser in the ledger's schema."""
        return await asyncpg.connect(self.url, server_settings={"search_path": "mws_metering"})
