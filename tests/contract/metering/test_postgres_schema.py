"""The ledger's schema in PostgreSQL: append-only by permission and by trigger, months by id, revisions.

Owns what the database itself enforces; refuses to test what its rows mean.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from services.metering import checking
from services.metering.adapters import postgres_schema
from services.metering.adapters.postgres_connection import Limits, connect
from services.metering.adapters.postgres_ledger import open_postgres_ledger, prepare
from services.metering.adapters.sqlite_schema import APPEND_ONLY_TABLES
from services.metering.migrations import HEAD, UnknownSchemaError, upgrade_script
from services.metering.ports import BalanceEvent, Rejection
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, DAY_US, NOW_US, Bookkeeper, a_credit, an_event, an_id
from tests.contract.metering.places import Database

TODAY = datetime.date(2026, 9, 21)


@pytest.fixture
async def filled(ledger_url: str) -> AsyncIterator[Database]:
    """A database with a row in every table."""
    async with open_postgres_ledger(ledger_url, write_timeout_s=20.0) as store:
        books = Bookkeeper(store)
        await books.register()
        await books.grant(a_credit())
        await books.record(an_event(), Rejection("x", "why", "{}"))
        await books.resolve(new_id())
        event = BalanceEvent(ACCOUNT, 10, 5, NOW_US)
        await store.commit(lambda transaction: transaction.add_balance_event(event))
        yield Database(ledger_url)


async def refusals(session: Any, verbs: list[str]) -> dict[str, str]:
    """Why the session may not do this, by table."""
    why = {}
    for table in APPEND_ONLY_TABLES:
        column = await session.fetchval(
            "SELECT column_name FROM information_schema.columns WHERE table_name = $1 AND ordinal_position = 2", table
        )
        for verb in verbs:
            try:
                await session.execute(verb.format(table=table, column=column))
            except asyncpg.PostgresError as error:
                why[f"{verb} {table}"] = type(error).__name__
            else:
                why[f"{verb} {table}"] = "done"
    return why


VERBS = ["UPDATE {table} SET {column} = {column}", "DELETE FROM {table}", "TRUNCATE {table} CASCADE"]


async def test_the_service_has_no_right_to_change_what_is_on_record(filled: Database) -> None:
    session = await connect(filled.url, Limits())
    found = await refusals(session, [*VERBS, "ALTER TABLE {table} DISABLE TRIGGER ALL", "DROP TABLE {table}"])
    await session.close()

    assert set(found.values()) == {"InsufficientPrivilegeError"}


async def test_not_even_the_owner_changes_what_is_on_record(filled: Database) -> None:
    session = await filled.session()
    found = await refusals(session, VERBS)
    (month,) = await session.fetchrow("SELECT tableoid::regclass::text FROM usage_events")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="append-only"):
        await session.execute(f"DELETE FROM {month}")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="append-only"):
        await session.execute(f"TRUNCATE {month}")
    await session.close()

    assert set(found.values()) == {"IntegrityConstraintViolationError"}


async def test_a_call_lies_in_the_month_of_its_id(ledger_url: str) -> None:
    place = Database(ledger_url)
    async with open_postgres_ledger(ledger_url, write_timeout_s=20.0) as store:
        await store.add_months(TODAY)
        await store.add_months(TODAY)  # finds them
        books = Bookkeeper(store)
        await books.register()
        edges = [datetime.datetime(2026, 10, 1, tzinfo=datetime.UTC).timestamp() * 1e6 + shift for shift in (-1000, 0)]
        instants = [NOW_US, *map(int, edges), NOW_US - 5_000 * DAY_US, NOW_US + 5_000 * DAY_US]
        events = [an_event(call_id=an_id(instant)) for instant in instants]
        await books.record(*events)
        again = await books.record(*events)
        report = await store.inspect(lambda snapshot: checking.check(snapshot, ""))

    found = dict(await place.rows("SELECT call_id::text, tableoid::regclass::text FROM usage_events"))
    assert [found[event.call_id] for event in events] == [
        "usage_events_2026_09",
        "usage_events_2026_09",
        "usage_events_2026_10",
        "usage_events_default",
        "usage_events_default",
    ]
    assert (report.violations, {outcome.is_repeated for outcome in again}) == ((), {True})


async def test_a_month_that_the_default_partition_has_calls_of_is_left_there(ledger_url: str) -> None:
    async with open_postgres_ledger(ledger_url, write_timeout_s=20.0) as store:
        books = Bookkeeper(store)
        await books.register()
        await books.record(an_event(call_id=an_id(NOW_US - 400 * DAY_US)))
        await store.add_months(TODAY - datetime.timedelta(days=400))

        (outcome,) = await books.record(an_event(call_id=an_id(NOW_US - 400 * DAY_US)))

    assert not outcome.is_repeated


async def test_a_revision_that_nobody_knows_is_not_served(ledger_url: str) -> None:
    session = await Database(ledger_url).session()
    await session.execute("UPDATE alembic_version SET version_num = '9999'")
    await session.close()

    with pytest.raises(UnknownSchemaError, match="schema version 9999"):
        async with open_postgres_ledger(ledger_url):
            pass


async def test_the_first_revision_is_brought_up_and_keeps_its_rows(postgres_url: str) -> None:
    session = await asyncpg.connect(postgres_url, server_settings={"search_path": "mws_metering"})
    script = upgrade_script("postgresql", None)
    await session.execute("CREATE SCHEMA mws_metering")
    await session.execute(script[: script.index("-- Running upgrade 0001 -> 0002")])
    await session.execute("INSERT INTO void_markers VALUES (gen_random_uuid(), 1)")

    with pytest.raises(UnknownSchemaError, match="migrate it first"):
        await prepare(postgres_url, TODAY, may_migrate=False)
    await asyncio.gather(*(prepare(postgres_url, TODAY) for _ in range(3)))
    await prepare(postgres_url, TODAY, may_migrate=False)

    assert await session.fetch("SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert await session.fetchval("SELECT count(*) FROM void_markers") == 1
    assert await session.fetchval("SELECT count(*) FROM balance_events") == 0
    await session.close()


async def test_a_login_that_may_only_append_serves_a_prepared_database(ledger_url: str) -> None:
    session = await Database(ledger_url).session()
    await session.execute("DROP ROLE IF EXISTS serving")
    await session.execute("CREATE ROLE serving LOGIN IN ROLE mws_metering_writer")
    try:
        async with open_postgres_ledger(ledger_url.replace("postgres@", "serving@"), write_timeout_s=20.0) as store:
            books = Bookkeeper(store)
            await books.register()
            await books.record(an_event())
            assert (await store.customer(ACCOUNT)).seq == 1
    finally:
        await session.execute("DROP ROLE serving")
        await session.close()


def test_months_follow_each_other_over_a_new_year() -> None:
    asked: list[datetime.date] = []

    class Session:
        async def execute(self, _: str, month: datetime.date) -> None:
            asked.append(month)

    asyncio.run(postgres_schema.add_months(Session(), datetime.date(2026, 11, 30)))

    assert asked == [
        datetime.date(2026, 11, 1),
        datetime.date(2026, 12, 1),
        *(datetime.date(2027, m, 1) for m in (1, 2)),
    ]
