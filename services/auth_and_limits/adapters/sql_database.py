"""What the statements of accounts run on: one promise, and its SQLite side.

Owns the form of a transaction and the thread that runs it on SQLite; refuses to know any table.

A transaction is written once, as a generator that yields statements and is sent their rows, so that the same code runs
on a blocking driver in a thread and on an asynchronous one.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from services.auth_and_limits.adapters import sql_migrations as migrations
from services.auth_and_limits.adapters.sql_migrations import AccountSchemaError
from services.runtime.errors import StoreUnavailableError

DECISION_S = 0.25  # slow counts as down
ADMIN_S = 5.0
_BUSY_S = 2.0

T = TypeVar("T")
Row = Any  # of either driver: its values by the names of their columns
Steps = Generator[sa.Executable, Sequence[Row], T]


class Database(Protocol):
    """Where accounts live. Everything may raise StoreUnavailableError: down, or slow."""

    async def read(self, query: sa.Select[Any], timeout_s: float) -> Sequence[Row]:
        """The rows of a query."""

    async def write(self, transaction: Callable[[], Steps[T]]) -> T:
        """Runs a transaction. No other one runs at the same time, on any replica."""

    async def close(self) -> None:
        """Lets go of the database once what runs has ended."""


def unavailable() -> StoreUnavailableError:
    """What every failure of a database is to a caller."""
    return StoreUnavailableError("accounts cannot be read", retry_in=timedelta(seconds=1))


class SqliteDatabase:
    """`Database` in a file. One thread, so a read never overtakes an earlier write."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="accounts-sql")

    @classmethod
    async def open(cls, path: Path, *, may_migrate: bool = True) -> "SqliteDatabase":
        """Opens or makes the database. Raises AccountSchemaError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            connect_args={"timeout": _BUSY_S, "check_same_thread": False},
            poolclass=sa.StaticPool,
        )
        sa.event.listen(engine, "connect", _configure)
        database = cls(engine)
        try:
            await asyncio.get_running_loop().run_in_executor(database._thread, _prepare, engine, may_migrate)
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=False)

    async def read(self, query: sa.Select[Any], timeout_s: float) -> Sequence[Row]:
        def rows(connection: sa.Connection) -> Sequence[Row]:
            return connection.execute(query).mappings().all()

        return await self._run(rows, timeout_s)

    async def write(self, transaction: Callable[[], Steps[T]]) -> T:
        return await self._run(lambda connection: _execute(connection, transaction()), ADMIN_S)

    async def _run(self, work: Callable[[sa.Connection], T], timeout_s: float) -> T:
        """Runs one transaction on the database's thread. A caller that gives up does not stop it."""

        def transaction() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)
        except (sa.exc.DBAPIError, TimeoutError) as error:
            raise unavailable() from error


def _execute(connection: sa.Connection, steps: Steps[T]) -> T:
    try:
        statement = next(steps)
        while True:
            result = connection.execute(statement)
            statement = steps.send(result.mappings().all() if result.returns_rows else [])
    except StopIteration as done:
        value: T = done.value
        return value


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _prepare(engine: sa.Engine, may_migrate: bool) -> None:
    try:
        with engine.begin() as connection:
            found = migrations.look(connection)
            if migrations.must_upgrade(str(engine.url), found, allowed=may_migrate):
                migrations.upgrade(connection, found)
    except sa.exc.DatabaseError as error:
        raise AccountSchemaError(f"{engine.url} cannot be used for accounts: {error.orig}") from error
