"""The PostgreSQL side of the accounts' database: a few connections, transactions one after another, a checked schema.

Owns connecting, timing out and the rendering of statements for the driver; refuses to know any table.

A connection on which anything went wrong is dropped, never reused, so a server that was killed, or stood still, costs
what was under way and nothing that comes after it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from services.auth_and_limits.adapters import sql_migrations as migrations
from services.auth_and_limits.adapters.sql_database import ADMIN_S, Row, Steps, unavailable
from services.auth_and_limits.adapters.sql_migrations import AccountSchemaError, Found
from services.auth_and_limits.adapters.sql_replicas import Replicas
from services.runtime.errors import GatewayError, InvalidRequestError

T = TypeVar("T")

LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, EOFError)
"""What a driver raises when a server is away, slow, or says no."""

_NAME = "mws-auth"
_CONNECTIONS = 8
_MIGRATE_S = 120.0
_SESSION = {
    "search_path": "auth",  # a schema of this service's own, so that services may share a database
    "statement_timeout": "5000",
    "lock_timeout": "5000",
    # A replica that stands still in the middle of a transaction must not keep the others from writing.
    "idle_in_transaction_session_timeout": "5000",
}
_ONE_WRITER = "SELECT pg_advisory_xact_lock(7173, 1)"
_LAST_REVISION = "SELECT coalesce(max(revision), 0) FROM audit_events"
_DIALECT: sa.Dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]

_log = structlog.get_logger()


class PostgresDatabase:
    """`sql_database.Database` on a server that replicas share."""

    def __init__(self, url: str, replicas: Replicas, *, may_migrate: bool = True) -> None:
        self._url = url.replace("postgresql+asyncpg://", "postgresql://", 1)
        parts = urlsplit(self._url)
        self._where = f"postgresql://{parts.hostname or ''}{parts.path}"
        self._replicas = replicas
        self._may_migrate = may_migrate
        self._is_known = False  # whether the schema is one that this program may serve on
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._idle: list[Any] = []

    async def connect(self, name: str) -> Any:
        """A connection of one's own, on a schema that this program knows. Raises AccountSchemaError, LOST."""
        settings = {**_SESSION, "application_name": name}
        connection = await asyncpg.connect(self._url, server_settings=settings)
        try:
            await self._check_schema(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def prepare(self) -> None:
        """Checks the schema now if the server answers. Raises AccountSchemaError."""
        try:
            async with asyncio.timeout(_MIGRATE_S):
                self._idle.append(await self.connect(_NAME))
        except LOST as error:
            _log.warning("accounts.away", why=type(error).__name__)

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    async def read(self, query: sa.Select[Any], timeout_s: float) -> Sequence[Row]:
        async with self._connection(timeout_s) as connection:
            return await _rows(connection, query)

    async def write(self, transaction: Callable[[], Steps[T]]) -> T:
        await self._replicas.wait_for_the_others()
        async with self._connection(ADMIN_S) as connection:
            await connection.execute("BEGIN")
            await connection.execute(_ONE_WRITER)
            try:
                value = await _execute(connection, transaction())
            except GatewayError:
                await connection.execute("ROLLBACK")
                raise
            revision = await connection.fetchval(_LAST_REVISION)
            await connection.execute("COMMIT")
            listening = await self._replicas.listening(connection)
        await self._replicas.wait_until_seen(revision, listening)
        return value

    @asynccontextmanager
    async def _connection(self, timeout_s: float) -> AsyncIterator[Any]:
        try:
            async with asyncio.timeout(timeout_s), self._free:
                connection = self._idle.pop() if self._idle else None
                if connection is None or connection.is_closed():
                    connection = await self.connect(_NAME)
                is_clean = False
                try:
                    yield connection
                    is_clean = True
                except GatewayError:
                    is_clean = True  # a refusal of ours, after a rollback
                    raise
                finally:
                    if is_clean and not connection.is_closed():
                        self._idle.append(connection)
                    else:
                        connection.terminate()
        except asyncpg.DataError as error:
            raise InvalidRequestError("a value cannot be stored") from error
        except AccountSchemaError as error:
            _log.error("accounts.schema_unknown", why=str(error))
            raise unavailable() from error
        except LOST as error:
            raise unavailable() from error

    async def _check_schema(self, connection: Any) -> None:
        """Once per process at a schema that is known; again after every failure to know it."""
        if self._is_known:
            return
        found = await _look(connection)
        if migrations.must_upgrade(self._where, found, allowed=self._may_migrate):
            async with asyncio.timeout(_MIGRATE_S):
                await _upgrade(connection)
        self._is_known = True


async def _rows(connection: Any, statement: sa.Executable) -> Sequence[Row]:
    compiled: Any = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})  # type: ignore[attr-defined]
    values = [compiled.params[name] for name in compiled.positiontup]
    rows: Sequence[Row] = await connection.fetch(str(compiled), *values)
    return rows


async def _execute(connection: Any, steps: Steps[T]) -> T:
    try:
        statement = next(steps)
        while True:
            statement = steps.send(await _rows(connection, statement))
    except StopIteration as done:
        value: T = done.value
        return value


async def _look(connection: Any) -> Found:
    if await connection.fetchval("SELECT to_regclass('auth.alembic_version')") is None:
        return Found()
    revision = await connection.fetchval("SELECT version_num FROM alembic_version")
    if await connection.fetchval("SELECT to_regclass('auth.schema_compatibility')") is None:
        return Found(str(revision or ""))
    return Found(str(revision), str(await connection.fetchval("SELECT oldest_program FROM schema_compatibility")))


async def _upgrade(connection: Any) -> None:
    """Runs the missing steps, whichever replica comes first; the others find nothing left to do."""
    await connection.execute("SELECT pg_advisory_lock(7173, 0)")
    try:
        await connection.execute("SET statement_timeout = 0; CREATE SCHEMA IF NOT EXISTS auth")
        found = await _look(connection)
        if found.revision < migrations.KNOWN:
            await connection.execute(migrations.upgrade_script(found))
    finally:
        await connection.execute("SELECT pg_advisory_unlock(7173, 0); RESET statement_timeout")
