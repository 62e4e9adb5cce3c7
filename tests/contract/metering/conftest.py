"""The two places of a ledger, for every test that asks for one.

Owns fixtures; refuses to assert anything.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.metering.adapters.postgres_ledger import prepare
from tests.contract.metering.building import Bookkeeper
from tests.contract.metering.places import ClosableStore, Database, File, Place
from tests.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def ledger_template(postgres_session: PostgresServer) -> str:
    """A database with the ledger's schema and nothing in it; copies of it cost less than migrations."""
    postgres_session.start()
    url = postgres_session.create_database()
    asyncio.run(prepare(url, datetime.datetime.now(datetime.UTC).date()))
    return url


@pytest.fixture
def ledger_url(postgres: PostgresServer, ledger_template: str) -> Iterator[str]:
    """A database of this test alone, with an empty ledger."""
    url = postgres.create_database(ledger_template)
    yield url
    postgres.start()
    postgres.thaw()
    postgres.drop_database(url)


@pytest.fixture(scope="module")
def ledger_place(postgres_session: PostgresServer, ledger_template: str) -> Iterator[Database]:
    """A database of this module, for tests that empty it themselves."""
    url = postgres_session.create_database(ledger_template)
    yield Database(url)
    postgres_session.drop_database(url)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place for a ledger, empty."""
    if request.param == "sqlite":
        return File(tmp_path / "with a space" / "ledger.sqlite3")
    return Database(request.getfixturevalue("ledger_url"))


@pytest.fixture
async def ledger(place: Place) -> AsyncIterator[ClosableStore]:
    """An open ledger, empty."""
    async with place.open() as opened:
        yield opened


@pytest.fixture
async def keeper(ledger: ClosableStore) -> Bookkeeper:
    """Runs use cases against the open ledger, whose price book is registered."""
    bookkeeper = Bookkeeper(ledger)
    await bookkeeper.register()
    return bookkeeper
