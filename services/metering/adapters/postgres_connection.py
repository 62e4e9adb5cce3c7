"""One PostgreSQL connection for a thread that may block: asyncpg on an event loop of its own.

Owns connecting, the session's limits, and which errors mean what; refuses to know a table.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]
import uvloop

T = TypeVar("T")
Rows = list[Any]

SCHEMA = "mws_metering"
WRITER_ROLE = "mws_metering_writer"
_STREAMED_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take. A transaction that its owner forgot is ended by the server, its locks with it."""

    connect_s: float = 3.0
    command_s: float = 5.0
    lock_s: float = 2.0
    idle_in_transaction_s: float = 5.0


_FAILURES = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,  # shut down, starting up, cancelled by a limit
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, while another server takes over
    asyncpg.PostgresSystemError,
    OSError,
    TimeoutError,
)
_CONFLICTS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.UniqueViolationError)


def is_store_failure(error: BaseException) -> bool:
    """Whether PostgreSQL could not do its work, as opposed to a statement that was wrong."""
    return isinstance(error, _FAILURES)


def is_conflict(error: BaseException) -> bool:
    """Whether another replica was in the way, so that the same work from its start finds a clear answer."""
    return isinstance(error, _CONFLICTS)


async def connect(url: str, limits: Limits, *, is_reader: bool = False, as_writer: bool = True) -> "asyncpg.Connection":
    """A session in the ledger's schema, as the role that may append and not change."""
    settings = {
        "application_name": "mws-metering",
        "search_path": SCHEMA,
        "timezone": "UTC",
        "statement_timeout": str(int(limits.command_s * 1_000)),
        "lock_timeout": str(int(limits.lock_s * 1_000)),
        "idle_in_transaction_session_timeout": str(int(limits.idle_in_transaction_s * 1_000)),
        "jit": "off",
    }
    if is_reader:
        settings["default_transaction_read_only"] = "on"
    connection = await asyncpg.connect(
        _postgres_scheme(url),
        timeout=limits.connect_s,
        command_timeout=limits.command_s + 1.0,
        server_settings=settings,
    )
    try:
        if as_writer:
            await connection.execute(f"SET ROLE {WRITER_ROLE}")
        await connection.set_type_codec(
            "uuid", schema="pg_catalog", encoder=_uuid_bytes, decoder=_uuid_text, format="binary"
        )
        await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=int, format="text")
    except BaseException:
        connection.terminate()
        raise
    return connection


def _postgres_scheme(url: str) -> str:
    """Takes an address as SQLAlchemy writes it, too."""
    scheme, separator, rest = url.partition("://")
    return scheme.partition("+")[0] + separator + rest


def _uuid_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("-", ""))


def _uuid_text(data: bytes) -> str:
    digits = data.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class BlockingConnection:
    """A session that one thread uses. Every method blocks; after a failure `close` it, the next use connects anew."""

    def __init__(self, open_session: Callable[[], Coroutine[Any, Any, "asyncpg.Connection"]]) -> None:
        self._open_session = open_session
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: asyncpg.Connection | None = None

    def open(self) -> None:
        """Connects, unless it is connected."""
        if self._loop is None:
            self._loop = uvloop.new_event_loop()
        if self._session is None or self._session.is_closed():
            self._session = self._run(self._open_session())

    @property
    def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._session is not None and not self._session.is_closed() and bool(self._session.is_in_transaction())

    def run(self, script: str, timeout_s: float | None = None) -> None:
        """Runs statements without parameters, in one message."""
        self._run(self._opened.execute(script, timeout=timeout_s))

    def fetch(self, statement: str, *parameters: Any) -> Rows:
        """Every row of a statement."""
        rows: Rows = self._run(self._opened.fetch(statement, *parameters))
        return rows

    def copy(self, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]]) -> None:
        """Appends records in bulk."""
        self._run(self._opened.copy_records_to_table(table, columns=columns, records=records))

    def stream(self, statement: str, *parameters: Any) -> Iterator[Any]:
        """The rows of a statement, a part at a time; other statements may run in between. Needs a transaction."""
        cursor = self._run(_cursor(self._opened, statement, parameters))
        while rows := self._run(cursor.fetch(_STREAMED_ROWS)):
            yield from rows

    def disconnect(self) -> None:
        """Ends the session without a word; the server undoes what was not committed."""
        if self._session is not None:
            self._session.terminate()
            self._session = None

    def close(self) -> None:
        """Ends the session and the loop."""
        self.disconnect()
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._loop = None

    @property
    def _opened(self) -> "asyncpg.Connection":
        assert self._session is not None
        return self._session

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return self._loop.run_until_complete(work)


async def _cursor(session: "asyncpg.Connection", statement: str, parameters: Sequence[Any]) -> Any:
    return await session.cursor(statement, *parameters)
