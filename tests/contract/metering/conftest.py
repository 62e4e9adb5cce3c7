"""The two places of a ledger, for every test that asks for one.

Owns fixtures; refuses to assert anything.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.metering.building import Bookkeeper
from tests.contract.metering.places import ClosableStore, Database, File, Place


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place for a ledger, empty."""
    if request.param == "sqlite":
        return File(tmp_path / "with a space" / "ledger.sqlite3")
    return Database(request.getfixturevalue("postgres_url"))


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
