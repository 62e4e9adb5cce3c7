"""The two stores of accounts, opened alike: a file, and PostgreSQL.

Owns opening and short ways to make records; refuses to assert anything.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from services.auth_and_limits.account_stores import open_shared
from services.auth_and_limits.adapters.sql_accounts import SqlAccounts
from services.auth_and_limits.adapters.sql_database import SqliteDatabase
from services.auth_and_limits.ports import AccountStore, ChangeFeed
from services.auth_and_limits.records import Account, AuditEvent, Key, Team
from services.runtime.ids import new_id


@asynccontextmanager
async def sqlite_store(folder: Path) -> AsyncIterator[AccountStore]:
    store = SqlAccounts(await SqliteDatabase.open(folder / "accounts.sqlite3"))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def replicas_on(url: str, count: int) -> AsyncIterator[list[tuple[AccountStore, ChangeFeed]]]:
    """Several processes' stores on one PostgreSQL."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_shared(url)) for _ in range(count)]


def event(action: str = "account.created", account_id: str = "", resource_id: str = "") -> AuditEvent:
    return AuditEvent(new_id(), 1, "admin", action, account_id, resource_id or account_id, {"name": "x"})


async def add_account(store: AccountStore, name: str = "acme") -> Account:
    account = Account(new_id(), name, "pro", created_at_ms=7)
    return await store.create_account(account, new_id(), b"content", event(account_id=account.account_id))


async def add_key(store: AccountStore, account_id: str, digest: bytes, request_id: str = "") -> Key:
    key = Key(new_id(), account_id, "ci", "mws_live_abcd", created_at_ms=7)
    return await store.create_key(key, digest, event("key.created", account_id, key.key_id), request_id, b"same")


async def add_team(store: AccountStore, account_id: str, subject: str = "svc") -> Team:
    team = Team(new_id(), account_id, "https://idp", subject, 7)
    return await store.create_team(team, event("team.created", account_id, team.team_id))
