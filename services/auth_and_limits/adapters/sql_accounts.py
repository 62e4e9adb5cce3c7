"""Accounts, keys, teams and the audit log in SQL.

Owns the statements; refuses to decide who may do what, and to know which database runs them.

Every change is numbered by its audit event. A record carries the number of its last change, so whoever holds an older
one can tell, and "what changed since" is a range of one index.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa

from services.auth_and_limits.adapters import sql_rows as rows
from services.auth_and_limits.adapters import sql_schema as t
from services.auth_and_limits.adapters.sql_database import ADMIN_S, DECISION_S, Database, Steps
from services.auth_and_limits.ports import Changed, Edit
from services.auth_and_limits.records import Account, AuditEvent, Key, Team
from services.runtime.errors import AlreadyExistsError, NotFoundError

T = TypeVar("T")

_ACCOUNT = "account_"  # before the columns of a key's account, where both are read
_KEY_BY_DIGEST = sa.select(t.keys, *(column.label(_ACCOUNT + column.name) for column in t.accounts.columns)).join(
    t.accounts, t.accounts.c.account_id == t.keys.c.account_id
)
_LAST_REVISION = sa.select(sa.func.coalesce(sa.func.max(t.audit_events.c.revision), 0).label("revision"))


class SqlAccounts:
    """`ports.AccountStore` on SQLAlchemy Core. `decision_s`: what a decision waits for takes no longer."""

    def __init__(self, database: Database, decision_s: float = DECISION_S) -> None:
        self._database = database
        self._decision_s = decision_s

    async def close(self) -> None:
        """Lets go of the database once what runs has ended."""
        await self._database.close()

    async def key_by_digest(self, stored_digest: bytes) -> tuple[Account, Key] | None:
        found = await self._database.read(_KEY_BY_DIGEST.where(t.keys.c.digest == stored_digest), self._decision_s)
        return (rows.account_from_row(found[0], _ACCOUNT), rows.key_from_row(found[0])) if found else None

    async def account(self, account_id: str) -> Account | None:
        found = await self._database.read(
            sa.select(t.accounts).where(t.accounts.c.account_id == account_id), self._decision_s
        )
        return rows.account_from_row(found[0]) if found else None

    async def team_by_subject(self, issuer: str, subject: str) -> Team | None:
        query = sa.select(t.teams).where(t.teams.c.issuer == issuer, t.teams.c.subject == subject)
        found = await self._database.read(query, self._decision_s)
        return rows.team_from_row(found[0]) if found else None

    async def create_account(self, account: Account, request_id: str, content: bytes, event: AuditEvent) -> Account:
        earlier = sa.select(t.accounts).where(t.accounts.c.request_id == request_id)

        def write() -> Steps[Account]:
            found = yield earlier
            if found:
                _check_same(found[0]["request_sha256"], content, "account")
                return rows.account_from_row(found[0])
            revision = yield from _log(event)
            created = replace(account, revision=revision)
            values = rows.account_values(created) | {"request_id": request_id, "request_sha256": content}
            yield sa.insert(t.accounts).values(values)
            return created

        return await self._database.write(write)

    async def accounts(self, name: str, after_id: str, at_most: int) -> Sequence[Account]:
        query = sa.select(t.accounts).where(t.accounts.c.account_id > after_id)
        if name:
            query = query.where(t.accounts.c.name == name)
        return await self._page(query.order_by(t.accounts.c.account_id).limit(at_most), rows.account_from_row)

    async def edit_account(self, account_id: str, edit: Edit[Account]) -> Account:
        here = t.accounts.c.account_id == account_id

        def write() -> Steps[Account]:
            found = yield sa.select(t.accounts).where(here)
            if not found:
                raise NotFoundError("no such account", metadata={"resource": "account"})
            after, event = edit(rows.account_from_row(found[0]))
            if event is not None:
                after = replace(after, revision=(yield from _log(event)))
                yield sa.update(t.accounts).where(here).values(rows.account_values(after))
            return after

        return await self._database.write(write)

    async def create_key(
        self, key: Key, stored_digest: bytes, event: AuditEvent, request_id: str = "", content: bytes = b""
    ) -> Key:
        earlier = sa.select(t.keys).where(t.keys.c.account_id == key.account_id, t.keys.c.request_id == request_id)

        def write() -> Steps[Key]:
            found = (yield earlier) if request_id else []
            if found:
                _check_same(found[0]["request_sha256"], content, "key")
                return rows.key_from_row(found[0])
            created = replace(key, revision=(yield from _log(event)))
            values = rows.key_values(created) | {"digest": stored_digest}
            if request_id:
                values |= {"request_id": request_id, "request_sha256": content}
            yield sa.insert(t.keys).values(values)
            return created

        return await self._database.write(write)

    async def keys(self, account_id: str, after_id: str, at_most: int) -> Sequence[Key]:
        query = sa.select(t.keys).where(t.keys.c.account_id == account_id, t.keys.c.key_id > after_id)
        return await self._page(query.order_by(t.keys.c.key_id).limit(at_most), rows.key_from_row)

    async def edit_key(self, key_id: str, edit: Edit[Key]) -> Key:
        here = t.keys.c.key_id == key_id

        def write() -> Steps[Key]:
            found = yield sa.select(t.keys).where(here)
            if not found:
                raise NotFoundError("no such key", metadata={"resource": "key"})
            after, event = edit(rows.key_from_row(found[0]))
            if event is not None:
                after = replace(after, revision=(yield from _log(event)))
                yield sa.update(t.keys).where(here).values(rows.key_values(after))
            return after

        return await self._database.write(write)

    async def note_uses(self, last_used_at_ms: Mapping[str, int]) -> None:
        used = t.keys.c.last_used_at_ms

        def write() -> Steps[None]:
            for key_id, at_ms in last_used_at_ms.items():
                is_newer = sa.or_(used.is_(None), used < at_ms)
                yield sa.update(t.keys).where(t.keys.c.key_id == key_id, is_newer).values(last_used_at_ms=at_ms)

        await self._database.write(write)

    async def create_team(self, team: Team, event: AuditEvent) -> Team:
        earlier = sa.select(t.teams).where(t.teams.c.issuer == team.issuer, t.teams.c.subject == team.subject)

        def write() -> Steps[Team]:
            found = yield earlier
            if found:
                existing = rows.team_from_row(found[0])
                if existing.account_id != team.account_id:
                    raise AlreadyExistsError("the subject acts for another account", metadata={"resource": "team"})
                return existing
            yield from _log(event)
            yield sa.insert(t.teams).values(rows.team_values(team))
            return team

        return await self._database.write(write)

    async def teams(self, account_id: str, after_id: str, at_most: int) -> Sequence[Team]:
        query = sa.select(t.teams).where(t.teams.c.account_id == account_id, t.teams.c.team_id > after_id)
        return await self._page(query.order_by(t.teams.c.team_id).limit(at_most), rows.team_from_row)

    async def delete_team(self, team_id: str, event: AuditEvent) -> Team | None:
        deleted_before = sa.select(t.audit_events.c.event_id).where(
            t.audit_events.c.resource_id == team_id, t.audit_events.c.action == event.action
        )

        def write() -> Steps[Team | None]:
            found = yield sa.select(t.teams).where(t.teams.c.team_id == team_id)
            if found:
                team = rows.team_from_row(found[0])
                yield sa.delete(t.teams).where(t.teams.c.team_id == team_id)
                yield from _log(replace(event, account_id=team.account_id))
                return team
            if not (yield deleted_before):
                raise NotFoundError("no such team", metadata={"resource": "team"})
            return None

        return await self._database.write(write)

    async def audit_events(self, account_id: str, before_id: str, at_most: int) -> Sequence[AuditEvent]:
        query = sa.select(t.audit_events)
        if account_id:
            query = query.where(t.audit_events.c.account_id == account_id)
        if before_id:
            query = query.where(t.audit_events.c.event_id < before_id)
        return await self._page(query.order_by(t.audit_events.c.event_id.desc()).limit(at_most), rows.event_from_row)

    async def changed_since(self, revision: int) -> Changed:
        # The number first: what is written in between is read now and once more later, and never missed.
        last = await self._database.read(_LAST_REVISION, ADMIN_S)
        ended = sa.select(t.audit_events.c.resource_id).where(
            t.audit_events.c.revision > revision, t.audit_events.c.action == "team.deleted"
        )
        accounts = await self._database.read(sa.select(t.accounts).where(t.accounts.c.revision > revision), ADMIN_S)
        keys = await self._database.read(sa.select(t.keys).where(t.keys.c.revision > revision), ADMIN_S)
        teams = await self._database.read(ended, ADMIN_S)
        return Changed(
            last[0]["revision"],
            [rows.account_from_row(row) for row in accounts],
            [rows.key_from_row(row) for row in keys],
            [row["resource_id"] for row in teams],
        )

    async def _page(self, query: sa.Select[Any], read: Callable[[Any], T]) -> list[T]:
        return [read(row) for row in await self._database.read(query, ADMIN_S)]


def _log(event: AuditEvent) -> Steps[int]:
    """Writes the audit event of a change; returns the change's number. Transactions run one after another."""
    last = yield _LAST_REVISION
    revision: int = last[0]["revision"] + 1
    yield sa.insert(t.audit_events).values(rows.event_values(event, revision))
    return revision


def _check_same(known: bytes, content: bytes, resource: str) -> None:
    if known != content:
        raise AlreadyExistsError("the request id was used with another content", metadata={"resource": resource})
