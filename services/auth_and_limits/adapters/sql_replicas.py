"""How replicas on one PostgreSQL learn of each other's changes, and how a change's maker learns that they have.

Owns listening, catching up and acknowledging; refuses to know what a change is.

The maker of a change waits until every replica that listens has applied it, so what it answers holds everywhere. A
replica that lost its ear asks before it decides, for 250 ms at most: a server that answers nobody cannot have been
told of a change either. While the server is away all replicas go on with what they know.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog

from services.auth_and_limits.adapters.sql_database import DECISION_S
from services.auth_and_limits.adapters.sql_migrations import AccountSchemaError
from services.auth_and_limits.ports import Changed
from services.runtime.errors import GatewayError

_CHANGED, _SEEN = "mws_auth_changed", "mws_auth_seen"
_NAME = "mws-auth-listener-"
_LAST_REVISION = "SELECT coalesce(max(revision), 0) FROM audit_events"
_LISTENING = """
    SELECT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND starts_with(application_name, $1)
"""
_CHECK_S = 2.0  # a version check this often finds what no notification told, and an ear that is dead
_ANSWER_S = 1.0
_SEEN_S = 1.0
_RETRY_S = 0.25

_log = structlog.get_logger()


class Replicas:
    """`ports.ChangeFeed` of one replica. `connect` and `changed_since` are its database's and its store's."""

    def __init__(self, replica: str) -> None:
        self._name = _NAME + replica
        self._apply: Callable[[Changed], None] = lambda _: None
        self._revision: int | None = None
        self._decided = asyncio.Event()  # set: fresh, or known to be cut off
        self._wake = asyncio.Event()
        self._told = asyncio.Event()  # replaced at every acknowledgement
        self._seen_by: dict[str, int] = {}
        self._write_from_s = 0.0
        self._is_away = False  # said once, however long it lasts
        self._is_listening = False
        self._failure: BaseException | None = None

    @property
    def is_healthy(self) -> bool:
        """Raises RuntimeError if listening ended by a defect: a process that is deaf for good must not go on."""
        if self._failure is not None:
            raise RuntimeError("listening for changes of accounts ended") from self._failure
        return self._is_listening

    @property
    def is_fresh(self) -> bool:
        return self._decided.is_set()

    async def refresh(self) -> None:
        try:
            async with asyncio.timeout(DECISION_S):
                await self._decided.wait()
        except TimeoutError:
            return

    def follow(self, apply: Callable[[Changed], None]) -> None:
        self._apply = apply

    async def run(
        self,
        connect: Callable[[str], Awaitable[Any]],
        changed_since: Callable[[int], Awaitable[Changed]],
        lost: tuple[type[BaseException], ...],
    ) -> None:
        """Listens for ever, and again whenever the connection was lost. Cancel it to end."""
        ended: tuple[type[BaseException], ...] = (*lost, GatewayError)
        while True:
            at_once = False
            try:
                async with asyncio.timeout(_ANSWER_S):
                    connection = await connect(self._name)
            except AccountSchemaError as error:
                _log.error("accounts.schema_unknown", why=str(error))
            except lost as error:
                self._note_away(error)
            else:
                try:
                    await self._listen(connection, changed_since)
                except ended as error:
                    _log.warning("accounts.lost", why=type(error).__name__)
                    at_once = self._is_listening  # a connection may end while its server lives
                finally:
                    self._is_listening = False
                    self._decided.clear()
                    connection.terminate()
            if not at_once:
                self._decided.set()
                await asyncio.sleep(_RETRY_S)

    async def _listen(self, connection: Any, changed_since: Callable[[int], Awaitable[Changed]]) -> None:
        connection.add_termination_listener(lambda _: self._wake.set())
        await connection.add_listener(_CHANGED, lambda *_: self._wake.set())
        await connection.add_listener(_SEEN, self._on_seen)
        had_been_cut_off = self._revision is not None
        await self._catch_up(connection, changed_since)
        loop = asyncio.get_running_loop()
        if had_been_cut_off:
            self._write_from_s = loop.time() + _RETRY_S + _ANSWER_S
        if self._is_away:
            self._is_away = False
            _log.info("accounts.back")
        self._is_listening = True
        self._decided.set()
        while True:
            try:
                async with asyncio.timeout(_CHECK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._catch_up(connection, changed_since)

    def note_end(self, listening: "asyncio.Task[None]") -> None:
        """The task of `run` ended."""
        if not listening.cancelled():
            self._failure = listening.exception()

    def _note_away(self, error: BaseException) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning("accounts.away", why=type(error).__name__)

    async def _catch_up(self, connection: Any, changed_since: Callable[[int], Awaitable[Changed]]) -> None:
        revision = await connection.fetchval(_LAST_REVISION, timeout=_ANSWER_S)
        if self._revision is None:
            self._revision = revision  # nothing is in memory yet that could be older
        elif revision < self._revision:  # a standby took over that had not heard of everything
            self._apply(Changed(revision, [], [], [], is_reset=True))
            self._revision = revision
        elif revision > self._revision:
            changed = await changed_since(self._revision)
            self._apply(changed)
            self._revision = changed.revision
        else:
            return
        await connection.execute("SELECT pg_notify($1, $2)", _SEEN, f"{self._name} {self._revision}", timeout=_ANSWER_S)

    def _on_seen(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        name, _, revision = payload.rpartition(" ")
        self._seen_by[name] = int(revision)
        self._told.set()
        self._told = asyncio.Event()

    async def listening(self, connection: Any) -> set[str]:
        """The other replicas that listen now."""
        names = {row["application_name"] for row in await connection.fetch(_LISTENING, _NAME)}
        self._seen_by = {name: seen for name, seen in self._seen_by.items() if name in names}
        return names - {self._name}

    async def wait_until_seen(self, revision: int, names: Iterable[str]) -> None:
        """Until those replicas have applied a change; not for ever, since one of them may stand still."""
        missing = set(names)
        try:
            async with asyncio.timeout(_SEEN_S):
                while missing := {name for name in missing if self._seen_by.get(name, -1) < revision}:
                    await self._told.wait()
        except TimeoutError:
            _log.warning("change.unseen", revision=revision, replicas=len(missing))

    async def wait_for_the_others(self) -> None:
        """After this replica was cut off: until the others had the time to listen again, too."""
        await asyncio.sleep(self._write_from_s - asyncio.get_running_loop().time())
