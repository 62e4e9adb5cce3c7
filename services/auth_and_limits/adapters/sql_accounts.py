"""Accounts, keys, teams and the audit log in SQL.

Owns the statements and the thread that runs them; refuses to decide who may do what.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from services.auth_and_limits.adapters import sql_schema as t
from services.auth_and_limits.ports import Edit
from services.auth_and_limits.records import NO_THROTTLE, Account, AuditEvent, Key, Team, Throttle
from services.auth_and_limits.tiers import NO_OVERRIDES, Overrides
from services.runtime.errors import AlreadyExistsError, NotFoundError, StoreUnavailableError

DECISION_S = 0.25  # slow counts as down
_ADMIN_S = 5.0
_BUSY_S = 2.0

T = TypeVar("T")

_KEY_BY_DIGEST = (
    sa.select(t.keys, *(column.label(f"account_{column.name}") for column in t.accounts.columns))
    .join(t.accounts, t.accounts.c.account_id == t.keys.c.account_id)
    .where(t.keys.c.digest == sa.bindparam("digest"))
)


class AccountSchemaError(Exception):
    """The database was made by another version of this program."""


class SqlAccounts:
    """`ports.AccountStore` on SQLAlchemy Core. One thread, so a read never overtakes an earlier write."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="accounts-sql")

    @classmethod
    async def open(cls, path: Path) -> "SqlAccounts":
        """Opens or makes the SQLite database. Raises AccountSchemaError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            connect_args={"timeout": _BUSY_S, "check_same_thread": False},
            poolclass=sa.StaticPool,
        )
        sa.event.listen(engine, "connect", _configure_sqlite)
        accounts = cls(engine)
        await asyncio.get_running_loop().run_in_executor(accounts._thread, _prepare, engine)
        return accounts

    async def close(self) -> None:
        """Lets go of the database once what runs has ended."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=False)

    async def key_by_digest(self, stored_digest: bytes) -> tuple[Account, Key] | None:
        def read(connection: sa.Connection) -> tuple[Account, Key] | None:
            row = connection.execute(_KEY_BY_DIGEST, {"digest": stored_digest}).mappings().first()
            if row is None:
                return None
            account = {column.name: row[f"account_{column.name}"] for column in t.accounts.columns}
            return _account(account), _key(row)

        return await self._run(read, DECISION_S)

    async def account(self, account_id: str) -> Account | None:
        query = sa.select(t.accounts).where(t.accounts.c.account_id == account_id)
        return await self._run(lambda connection: _first(connection, query, _account), DECISION_S)

    async def team_by_subject(self, issuer: str, subject: str) -> Team | None:
        query = sa.select(t.teams).where(t.teams.c.issuer == issuer, t.teams.c.subject == subject)
        return await self._run(lambda connection: _first(connection, query, _team), DECISION_S)

    async def create_account(self, account: Account, request_id: str, content: bytes, event: AuditEvent) -> Account:
        earlier = sa.select(t.accounts).where(t.accounts.c.request_id == request_id)

        def write(connection: sa.Connection) -> Account:
            row = connection.execute(earlier).mappings().first()
            if row is not None:
                if row["request_sha256"] != content:
                    raise AlreadyExistsError(
                        "the request id was used with another content", metadata={"resource": "account"}
                    )
                return _account(row)
            values = _account_values(account) | {"request_id": request_id, "request_sha256": content}
            connection.execute(sa.insert(t.accounts).values(values))
            _log_event(connection, event)
            return account

        return await self._run(write)

    async def accounts(self, name: str, after_id: str, at_most: int) -> Sequence[Account]:
        query = sa.select(t.accounts).where(t.accounts.c.account_id > after_id)
        if name:
            query = query.where(t.accounts.c.name == name)
        return await self._page(query.order_by(t.accounts.c.account_id).limit(at_most), _account)

    async def edit_account(self, account_id: str, edit: Edit[Account]) -> Account:
        here = t.accounts.c.account_id == account_id

        def write(connection: sa.Connection) -> Account:
            before = _first(connection, sa.select(t.accounts).where(here), _account)
            if before is None:
                raise NotFoundError("no such account", metadata={"resource": "account"})
            after, event = edit(before)
            if event is not None:
                connection.execute(sa.update(t.accounts).where(here).values(_account_values(after)))
                _log_event(connection, event)
            return after

        return await self._run(write)

    async def create_key(self, key: Key, stored_digest: bytes, event: AuditEvent) -> None:
        def write(connection: sa.Connection) -> None:
            connection.execute(sa.insert(t.keys).values(_key_values(key) | {"digest": stored_digest}))
            _log_event(connection, event)

        await self._run(write)

    async def keys(self, account_id: str, after_id: str, at_most: int) -> Sequence[Key]:
        query = sa.select(t.keys).where(t.keys.c.account_id == account_id, t.keys.c.key_id > after_id)
        return await self._page(query.order_by(t.keys.c.key_id).limit(at_most), _key)

    async def edit_key(self, key_id: str, edit: Edit[Key]) -> Key:
        here = t.keys.c.key_id == key_id

        def write(connection: sa.Connection) -> Key:
            before = _first(connection, sa.select(t.keys).where(here), _key)
            if before is None:
                raise NotFoundError("no such key", metadata={"resource": "key"})
            after, event = edit(before)
            if event is not None:
                connection.execute(sa.update(t.keys).where(here).values(_key_values(after)))
                _log_event(connection, event)
            return after

        return await self._run(write)

    async def create_team(self, team: Team, event: AuditEvent) -> Team:
        earlier = sa.select(t.teams).where(t.teams.c.issuer == team.issuer, t.teams.c.subject == team.subject)

        def write(connection: sa.Connection) -> Team:
            existing = _first(connection, earlier, _team)
            if existing is not None:
                if existing.account_id != team.account_id:
                    raise AlreadyExistsError("the subject acts for another account", metadata={"resource": "team"})
                return existing
            values = {column.name: getattr(team, column.name) for column in t.teams.columns}
            connection.execute(sa.insert(t.teams).values(values))
            _log_event(connection, event)
            return team

        return await self._run(write)

    async def teams(self, account_id: str, after_id: str, at_most: int) -> Sequence[Team]:
        query = sa.select(t.teams).where(t.teams.c.account_id == account_id, t.teams.c.team_id > after_id)
        return await self._page(query.order_by(t.teams.c.team_id).limit(at_most), _team)

    async def delete_team(self, team_id: str, event: AuditEvent) -> Team | None:
        deleted_before = sa.select(t.audit_events.c.event_id).where(
            t.audit_events.c.resource_id == team_id, t.audit_events.c.action == event.action
        )

        def write(connection: sa.Connection) -> Team | None:
            team = _first(connection, sa.select(t.teams).where(t.teams.c.team_id == team_id), _team)
            if team is not None:
                connection.execute(sa.delete(t.teams).where(t.teams.c.team_id == team_id))
                _log_event(connection, replace(event, account_id=team.account_id))
            elif connection.execute(deleted_before).first() is None:
                raise NotFoundError("no such team", metadata={"resource": "team"})
            return team

        return await self._run(write)

    async def audit_events(self, account_id: str, before_id: str, at_most: int) -> Sequence[AuditEvent]:
        query = sa.select(t.audit_events)
        if account_id:
            query = query.where(t.audit_events.c.account_id == account_id)
        if before_id:
            query = query.where(t.audit_events.c.event_id < before_id)
        return await self._page(query.order_by(t.audit_events.c.event_id.desc()).limit(at_most), _event)

    async def _page(self, query: sa.Select[Any], read: Callable[[Any], T]) -> list[T]:
        return await self._run(lambda connection: [read(row) for row in connection.execute(query).mappings()])

    async def _run(self, work: Callable[[sa.Connection], T], timeout_s: float = _ADMIN_S) -> T:
        """Runs one transaction on the store's thread. A caller that gives up does not stop it."""

        def transaction() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)
        except (sa.exc.DBAPIError, TimeoutError) as error:
            raise StoreUnavailableError("accounts cannot be read", retry_in=timedelta(seconds=1)) from error


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _schema_versions(engine: sa.Engine) -> Sequence[int]:
    with engine.begin() as connection:
        if not sa.inspect(connection).has_table(t.schema_version.name):
            t.metadata.create_all(connection)
            connection.execute(sa.insert(t.schema_version).values(version=t.SCHEMA_VERSION))
        return connection.execute(sa.select(t.schema_version.c.version)).scalars().all()


def _prepare(engine: sa.Engine) -> None:
    """Makes the tables of an empty database; refuses one of another version."""
    try:
        versions = _schema_versions(engine)
    except sa.exc.DatabaseError as error:
        raise AccountSchemaError(f"{engine.url} cannot be used for accounts: {error.orig}") from error
    if versions != [t.SCHEMA_VERSION]:
        raise AccountSchemaError(f"{engine.url}: schema version {versions}, this program knows {t.SCHEMA_VERSION}")


def _first(connection: sa.Connection, query: sa.Select[Any], read: Callable[[Any], T]) -> T | None:
    row = connection.execute(query).mappings().first()
    return None if row is None else read(row)


def _log_event(connection: sa.Connection, event: AuditEvent) -> None:
    values = {column.name: getattr(event, column.name) for column in t.audit_events.columns}
    connection.execute(sa.insert(t.audit_events).values(values))


def _account(row: Any) -> Account:
    overrides = Overrides(row["requests_per_minute"], row["tokens_per_minute"], row["concurrent_calls"])
    return Account(
        row["account_id"],
        row["name"],
        row["plan"],
        NO_OVERRIDES if overrides == NO_OVERRIDES else overrides,
        row["suspended"],
        row["created_at_ms"],
    )


def _account_values(account: Account) -> dict[str, Any]:
    return {
        "account_id": account.account_id,
        "name": account.name,
        "plan": account.plan,
        "requests_per_minute": account.overrides.requests_per_minute,
        "tokens_per_minute": account.overrides.tokens_per_minute,
        "concurrent_calls": account.overrides.concurrent_calls,
        "suspended": account.suspended,
        "created_at_ms": account.created_at_ms,
    }


def _key(row: Any) -> Key:
    throttle = Throttle(row["requests_per_minute"], row["tokens_per_minute"])
    return Key(
        row["key_id"],
        row["account_id"],
        row["name"],
        row["prefix"],
        NO_THROTTLE if throttle == NO_THROTTLE else throttle,
        row["expires_at_ms"],
        row["revoked_at_ms"],
        row["created_at_ms"],
    )


def _key_values(key: Key) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "account_id": key.account_id,
        "name": key.name,
        "prefix": key.prefix,
        "requests_per_minute": key.throttle.requests_per_minute,
        "tokens_per_minute": key.throttle.tokens_per_minute,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "created_at_ms": key.created_at_ms,
    }


def _team(row: Any) -> Team:
    return Team(row["team_id"], row["account_id"], row["issuer"], row["subject"], row["created_at_ms"])


def _event(row: Any) -> AuditEvent:
    return AuditEvent(
        row["event_id"],
        row["at_ms"],
        row["actor"],
        row["action"],
        row["account_id"],
        row["resource_id"],
        row["changes"],
    )
