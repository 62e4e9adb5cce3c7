"""One suite for every store of accounts: a file and a real PostgreSQL keep the same promises.

Owns what `ports.AccountStore` says; what only replicas can show is in `test_account_replicas.py`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.auth_and_limits.ports import AccountStore
from services.auth_and_limits.records import Account, Key, Throttle
from services.auth_and_limits.tiers import Overrides
from services.runtime.errors import AlreadyExistsError, NotFoundError
from services.runtime.ids import new_id
from tests.contract.auth_and_limits.account_store import (
    add_account,
    add_key,
    add_team,
    event,
    replicas_on,
    sqlite_store,
)
from tests.postgres_server import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AccountStore]:
    if request.param == "sqlite":
        async with sqlite_store(tmp_path) as opened:
            yield opened
    else:
        async with replicas_on(request.getfixturevalue("postgres_url"), 1) as [(opened, _)]:
            yield opened


async def test_an_account_comes_back_as_it_was_written(store: AccountStore) -> None:
    account = Account(new_id(), "näme'; DROP TABLE accounts; --", "pro", Overrides(1, None, 3), True, 9)
    created = await store.create_account(account, new_id(), b"c", event(account_id=account.account_id))

    assert created == replace(account, revision=1)
    assert await store.account(account.account_id) == created
    assert await store.account("' OR ''='") is None


async def test_a_request_id_makes_one_account(store: AccountStore) -> None:
    request_id = new_id()

    async def create(content: bytes) -> Account:
        account = Account(new_id(), "a", "pro")
        return await store.create_account(account, request_id, content, event(account_id=account.account_id))

    made = await asyncio.gather(*(create(b"same") for _ in range(5)))
    assert len({account.account_id for account in made}) == 1
    with pytest.raises(AlreadyExistsError):
        await create(b"other")
    assert len(await store.audit_events("", "", 10)) == 1


async def test_edits_of_one_record_happen_one_after_another(store: AccountStore) -> None:
    account = await add_account(store)

    def longer(before: Account) -> tuple[Account, object]:
        return replace(before, name=before.name + "x"), event("account.updated", before.account_id)

    await asyncio.gather(*(store.edit_account(account.account_id, longer) for _ in range(10)))  # type: ignore[arg-type]
    found = await store.account(account.account_id)

    assert found is not None
    assert (found.name, found.revision) == ("acme" + "x" * 10, 11)
    with pytest.raises(NotFoundError):
        await store.edit_account(new_id(), lambda before: (before, None))


async def test_an_edit_that_changes_nothing_leaves_no_trace(store: AccountStore) -> None:
    account = await add_account(store)

    assert await store.edit_account(account.account_id, lambda before: (before, None)) == account
    assert (await store.changed_since(0)).revision == 1


async def test_a_key_is_found_by_its_digest_with_its_account(store: AccountStore) -> None:
    account = await add_account(store)
    key = await add_key(store, account.account_id, b"\x00digest")

    assert await store.key_by_digest(b"\x00digest") == (account, key)
    assert await store.key_by_digest(b"\x00diges") is None

    def revoke(before: Key) -> tuple[Key, object]:
        changed = replace(before, revoked_at_ms=5, throttle=Throttle(1, 2), expires_at_ms=3)
        return changed, event("key.revoked", before.account_id, before.key_id)

    revoked = await store.edit_key(key.key_id, revoke)  # type: ignore[arg-type]
    assert (revoked.revoked_at_ms, revoked.throttle, revoked.expires_at_ms) == (5, Throttle(1, 2), 3)
    assert await store.key_by_digest(b"\x00digest") == (account, revoked)


async def test_a_request_id_makes_one_key_of_an_account(store: AccountStore) -> None:
    account, other = await add_account(store), await add_account(store)
    first = await add_key(store, account.account_id, b"1", "request")

    assert await add_key(store, account.account_id, b"2", "request") == first
    assert await add_key(store, other.account_id, b"3", "request") != first
    assert await add_key(store, account.account_id, b"4") != await add_key(store, account.account_id, b"5")


async def test_last_uses_never_go_back(store: AccountStore) -> None:
    key = await add_key(store, (await add_account(store)).account_id, b"d")
    seen = []
    for at_ms in (5, 3, 9):
        await store.note_uses({key.key_id: at_ms, new_id(): 1})
        seen.append([key.last_used_at_ms for key in await store.keys(key.account_id, "", 10)])

    assert seen == [[5], [5], [9]]


async def test_lists_go_on_where_the_page_before_ended(store: AccountStore) -> None:
    accounts = sorted([await add_account(store, "a") for _ in range(3)], key=lambda account: account.account_id)
    await add_account(store, "b")
    keys = sorted([await add_key(store, accounts[0].account_id, bytes([n])) for n in range(3)], key=lambda k: k.key_id)

    assert await store.accounts("a", "", 2) == accounts[:2]
    assert await store.accounts("a", accounts[1].account_id, 2) == accounts[2:]
    assert await store.keys(accounts[0].account_id, keys[0].key_id, 5) == keys[1:]
    events = await store.audit_events(accounts[0].account_id, "", 10)
    assert [e.event_id for e in events] == sorted((e.event_id for e in events), reverse=True)
    assert await store.audit_events(accounts[0].account_id, events[0].event_id, 10) == events[1:]


async def test_a_subject_acts_for_one_account_until_its_team_is_deleted(store: AccountStore) -> None:
    account, other = await add_account(store), await add_account(store)
    team = await add_team(store, account.account_id)

    assert await add_team(store, account.account_id) == team
    with pytest.raises(AlreadyExistsError):
        await add_team(store, other.account_id)
    assert await store.team_by_subject("https://idp", "svc") == team
    deletion = event("team.deleted", "", team.team_id)
    assert await store.delete_team(team.team_id, deletion) == team
    assert await store.delete_team(team.team_id, replace(deletion, event_id=new_id())) is None
    assert await store.team_by_subject("https://idp", "svc") is None
    with pytest.raises(NotFoundError):
        await store.delete_team(new_id(), deletion)
    assert (await store.changed_since(0)).ended_team_ids == [team.team_id]


async def test_what_changed_since_a_revision_is_told_as_it_is_now(store: AccountStore) -> None:
    first, second = await add_account(store), await add_account(store)
    key = await add_key(store, first.account_id, b"d")

    assert (await store.changed_since(0)).revision == 3
    changed = await store.changed_since(1)
    assert (changed.accounts, changed.keys) == ([second], [key])
    nothing = await store.changed_since(3)
    assert (nothing.accounts, nothing.keys, nothing.ended_team_ids) == ([], [], [])


async def test_the_audit_log_of_a_server_cannot_be_rewritten(postgres: PostgresServer, postgres_url: str) -> None:
    async with replicas_on(postgres_url, 1) as [(store, _)]:
        await add_account(store)
    name = postgres_url.rpartition("/")[2]
    for statement in ("UPDATE auth.audit_events SET actor = 'x'", "DELETE FROM auth.audit_events"):
        with pytest.raises(AssertionError, match="append-only"):
            postgres.execute(statement, name)


async def test_a_file_of_before_the_migrations_is_taken_over(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path) as store:
        account = await add_account(store)
    database = sqlite3.connect(tmp_path / "accounts.sqlite3")
    database.executescript("""
        DROP TABLE alembic_version; DROP TABLE schema_compatibility; DROP INDEX ix_keys_request;
        DROP INDEX ix_accounts_revision; DROP INDEX ix_keys_revision; DROP INDEX ix_audit_events_revision;
        ALTER TABLE accounts DROP COLUMN revision; ALTER TABLE accounts DROP COLUMN closed_at_ms;
        ALTER TABLE keys DROP COLUMN revision; ALTER TABLE keys DROP COLUMN request_id;
        ALTER TABLE keys DROP COLUMN request_sha256; ALTER TABLE keys DROP COLUMN last_used_at_ms;
        ALTER TABLE audit_events DROP COLUMN revision;
        CREATE TABLE schema_version (version INTEGER); INSERT INTO schema_version VALUES (1);
    """)
    database.close()

    async with sqlite_store(tmp_path) as store:
        assert await store.account(account.account_id) == replace(account, revision=0)
        assert (await add_account(store)).revision == 1
