"""Several replicas of auth-and-limits on one PostgreSQL: a change holds everywhere once its maker was answered.

Owns what a directory decides on another replica's changes, and while PostgreSQL is killed, frozen or away.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from pydantic import SecretStr

from services.auth_and_limits import api_keys
from services.auth_and_limits.account_stores import open_shared
from services.auth_and_limits.adapters.sql_migrations import KNOWN, AccountSchemaError
from services.auth_and_limits.adapters.sql_replicas import Replicas
from services.auth_and_limits.directory import Directory
from services.auth_and_limits.identity import OidcTokens
from services.auth_and_limits.migrate import bring_up
from services.auth_and_limits.migrate import main as migrate
from services.auth_and_limits.ports import AccountStore, ChangeFeed
from services.auth_and_limits.records import Account, Key
from services.auth_and_limits.settings import MigrationSettings
from services.runtime.errors import InvalidCredentialError, StoreUnavailableError
from tests.contract.auth_and_limits.account_store import add_account, add_key, event, replicas_on
from tests.postgres_server import PostgresServer

DIGEST, UNUSED = b"d" * 32, b"u" * 32
PEPPER = b"pepper"


def directory_of(store: AccountStore, feed: ChangeFeed) -> Directory:
    tokens = OidcTokens([], time.monotonic, lambda: 0)
    return Directory(store, tokens, feed, pepper=PEPPER, now_unix_ms=lambda: 1_000)


class Replica:
    """One process's view."""

    def __init__(self, store: AccountStore, feed: ChangeFeed) -> None:
        self.store, self.feed = store, feed
        self.directory = directory_of(store, feed)

    async def works(self, digest: bytes = DIGEST) -> bool:
        try:
            await self.directory.payer_by_key(digest)
        except InvalidCredentialError:
            return False
        return True

    async def edit_key(self, key_id: str, **fields: Any) -> None:
        def change(before: Key) -> Any:
            return replace(before, **fields), event("key.updated", before.account_id, key_id)

        self.directory.put_key(await self.store.edit_key(key_id, change))

    async def edit_account(self, account_id: str, **fields: Any) -> None:
        def change(before: Account) -> Any:
            return replace(before, **fields), event("account.updated", account_id)

        self.directory.put_account(await self.store.edit_account(account_id, change))


@asynccontextmanager
async def replicas(url: str, count: int) -> AsyncIterator[list[Replica]]:
    async with replicas_on(url, count) as opened:
        yield [Replica(store, feed) for store, feed in opened]


async def known_key(replica: Replica, digest: bytes = DIGEST) -> Key:
    account = await add_account(replica.store)
    return await add_key(replica.store, account.account_id, api_keys.stored_digest(PEPPER, digest))


async def until(is_so: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_a_revocation_holds_on_every_replica_once_it_was_answered(postgres_url: str) -> None:
    async with replicas(postgres_url, 3) as all_of_them:
        for turn, maker in enumerate(all_of_them):
            digest = bytes([turn]) * 32
            key = await known_key(maker, digest)
            seen = [[await replica.works(digest) for replica in all_of_them]]
            for revoked_at_ms in (1, None, 1):
                await maker.edit_key(key.key_id, revoked_at_ms=revoked_at_ms)
                seen.append([await replica.works(digest) for replica in all_of_them])

            assert seen == [[True] * 3, [False] * 3, [True] * 3, [False] * 3]


async def test_a_change_of_an_account_acts_at_the_next_decision_of_every_replica(postgres_url: str) -> None:
    async with replicas(postgres_url, 2) as [here, there]:
        key = await known_key(here)
        seen = []
        for plan in ("pro", "enterprise", "start"):
            await there.directory.payer_by_key(DIGEST)
            await here.edit_account(key.account_id, plan=plan)
            seen.append((await there.directory.payer_by_key(DIGEST)).account.plan)

        assert seen == ["pro", "enterprise", "start"]
        await there.edit_account(key.account_id, suspended=True)
        assert not await here.works()


async def test_a_key_that_one_replica_refused_works_there_once_another_made_it(postgres_url: str) -> None:
    async with replicas(postgres_url, 2) as [here, there]:
        assert not await there.works()
        await known_key(here)
        assert await there.works()


async def test_of_two_versions_of_a_record_the_newer_stays(postgres_url: str) -> None:
    async with replicas(postgres_url, 1) as [replica]:
        key = await known_key(replica)
        await replica.works()
        await replica.edit_key(key.key_id, revoked_at_ms=1)
        replica.directory.put_key(key)

        assert not await replica.works()


async def test_known_keys_work_while_postgresql_is_gone_and_unknown_ones_are_not_called_invalid(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with replicas(postgres_url, 2) as [here, there]:
        key = await known_key(here)
        await add_key(here.store, key.account_id, api_keys.stored_digest(PEPPER, UNUSED))
        assert await here.works()
        assert await there.works()
        postgres.kill()
        for replica in (here, there):
            assert await replica.works()
            with pytest.raises(StoreUnavailableError):
                await replica.works(UNUSED)
            with pytest.raises(StoreUnavailableError):
                await replica.edit_account(key.account_id, plan="x")
        postgres.start()
        await until(lambda: here.feed.is_healthy and there.feed.is_healthy)

        assert await here.works(UNUSED)
        await here.edit_key(key.key_id, revoked_at_ms=1)
        assert not await there.works()


async def test_a_replica_that_lost_its_connection_asks_before_it_decides(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with replicas(postgres_url, 2) as [here, there]:
        key = await known_key(here)
        assert await there.works()
        # What a third replica does while these two hear nothing.
        unheard = (
            "ALTER TABLE auth.audit_events DISABLE TRIGGER audit_events_tell;"
            f"UPDATE auth.keys SET revoked_at_ms = 1, revision = 9 WHERE key_id = '{key.key_id}';"
            "INSERT INTO auth.audit_events SELECT 'e', 1, 'admin', 'key.revoked', '', '', '{}', 9;"
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mws-%'"
        )
        await asyncio.to_thread(postgres.execute, unheard, postgres_url.rpartition("/")[2])

        async with asyncio.timeout(1.5):  # sooner than the next version check: the end of the connection told it
            while await there.works():
                await asyncio.sleep(0)


async def test_a_frozen_postgresql_counts_as_down_within_a_quarter_of_a_second(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with replicas(postgres_url, 1) as [replica]:
        await known_key(replica)
        await replica.works()
        postgres.freeze()
        began = time.monotonic()
        assert await replica.works()
        known_s = time.monotonic() - began
        with pytest.raises(StoreUnavailableError):
            await replica.works(UNUSED)
        asked_s = time.monotonic() - began
        postgres.thaw()

        assert known_s < 0.25
        assert 0.2 < asked_s < 2.0
        await until(lambda: replica.feed.is_healthy)
        assert not await replica.works(UNUSED)


async def test_a_process_starts_without_postgresql_and_serves_once_it_is_there(
    postgres: PostgresServer, postgres_url: str
) -> None:
    postgres.stop()
    async with replicas(postgres_url, 1) as [replica]:
        with pytest.raises(StoreUnavailableError):
            await replica.works()
        assert not replica.feed.is_healthy
        postgres.start()
        await until(lambda: replica.feed.is_healthy)
        await known_key(replica)
        assert await replica.works()


async def test_a_replica_that_stands_still_does_not_keep_others_from_writing(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with replicas(postgres_url, 1) as [replica]:
        key = await known_key(replica)
        deaf = await replica_that_never_answers(postgres_url)
        began = time.monotonic()
        await replica.edit_key(key.key_id, name="x")
        waited_s = time.monotonic() - began
        deaf.terminate()

        assert 0.9 < waited_s < 4.0


async def replica_that_never_answers(url: str) -> Any:
    return await asyncpg.connect(url, server_settings={"application_name": "mws-auth-listener-deaf"})


async def test_replicas_that_start_together_make_the_schema_once(postgres_url: str) -> None:
    async with AsyncExitStack() as stack:
        opened = await asyncio.gather(*(stack.enter_async_context(open_shared(postgres_url)) for _ in range(4)))

        assert [(await store.changed_since(0)).revision for store, _ in opened] == [0] * 4


@pytest.mark.parametrize(
    ("oldest_program", "is_served"),
    [
        pytest.param(KNOWN, True, id="a newer schema that was only expanded is served"),
        pytest.param("9998", False, id="a newer schema that dropped what this program uses is refused"),
    ],
)
async def test_a_newer_schema(
    postgres: PostgresServer, postgres_url: str, oldest_program: str, is_served: bool
) -> None:
    async with replicas(postgres_url, 1):
        pass
    postgres.execute(
        "UPDATE auth.alembic_version SET version_num = '9999';"
        f"UPDATE auth.schema_compatibility SET oldest_program = '{oldest_program}'",
        postgres_url.rpartition("/")[2],
    )
    if is_served:
        async with replicas(postgres_url, 1) as [replica]:
            await known_key(replica)
        return
    with pytest.raises(AccountSchemaError, match="9998"):
        async with replicas(postgres_url, 1):
            pass


async def test_an_older_schema_is_refused_where_a_start_may_not_bring_it_up(postgres_url: str) -> None:
    with pytest.raises(AccountSchemaError, match="may not bring it up"):
        async with open_shared(postgres_url, may_migrate=False):
            pass
    await bring_up(MigrationSettings(postgres_url=SecretStr(postgres_url)))
    async with open_shared(postgres_url, may_migrate=False) as (store, _):
        assert (await store.changed_since(0)).revision == 0


def test_the_migration_says_what_it_did(
    postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MWS_AUTH_POSTGRES_URL", postgres_url)
    statuses = [migrate(), migrate()]
    postgres.stop()
    statuses.append(migrate())

    assert statuses == [0, 0, 1]
    said = capsys.readouterr()
    assert KNOWN in said.out
    assert said.err.startswith("error: ")


async def test_a_replica_that_is_deaf_by_a_defect_says_so() -> None:
    async def connect(_: str) -> Any:
        raise KeyError("a defect")

    async def changed_since(_: int) -> Any:
        raise AssertionError("never asked")

    replica = Replicas("x")
    listening = asyncio.ensure_future(replica.run(connect, changed_since, (OSError,)))
    listening.add_done_callback(replica.note_end)
    await asyncio.wait([listening])
    await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="listening"):
        _ = replica.is_healthy
