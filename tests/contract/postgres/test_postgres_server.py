"""The server that suites on PostgreSQL stand on: it can be killed, frozen and restarted, and keeps what was committed.

Owns promises of the fixture; the suites of each store live beside their ports.
"""

import asyncio

import asyncpg  # type: ignore[import-untyped]
import pytest

from tests.postgres_server import PostgresServer


async def test_every_test_has_an_empty_database(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    finally:
        await connection.close()


@pytest.mark.parametrize("ending", ["stop", "kill"])
async def test_what_was_committed_is_there_after_a_restart(
    postgres: PostgresServer, postgres_url: str, ending: str
) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("create table facts (fact text); insert into facts values ('kept')")
    getattr(postgres, ending)()
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await asyncpg.connect(postgres_url)
    postgres.start()
    again = await asyncpg.connect(postgres_url)
    assert await again.fetchval("select fact from facts") == "kept"
    await again.close()
    connection.terminate()


async def test_a_frozen_server_answers_nothing_until_it_is_let_go(postgres: PostgresServer, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    postgres.freeze()
    asking = asyncio.ensure_future(connection.fetchval("select 1"))
    done, _ = await asyncio.wait([asking], timeout=0.2)
    assert not done
    postgres.thaw()
    assert await asking == 1
    await connection.close()
