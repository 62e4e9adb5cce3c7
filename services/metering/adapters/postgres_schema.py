"""The ledger's schema in a PostgreSQL database: made, brought to the newest revision, or refused; its months.

Owns the order of replicas that start at once; refuses to read or write a record, and to know the tables.
"""

import datetime
from typing import Any

from services.metering.adapters.postgres_connection import SCHEMA
from services.metering.migrations import HEAD, SERVED, UnknownSchemaError, check_known, upgrade_script

MONTHS_AHEAD = 3
_MIGRATION_S = 600.0
_MIGRATION_LOCK = 0x4D57534C  # one replica migrates, the others wait and find it done


async def prepare(connection: Any, *, may_migrate: bool = True) -> None:
    """Brings the database to the newest revision, unless it has one that this release serves already and may not.

    All in one transaction. A login that may not make tables can serve what another one has prepared. Raises
    UnknownSchemaError for a database of a revision that this release does not know.
    """
    revision = await _revision(connection)
    if revision == HEAD or (revision in SERVED and not may_migrate):
        return
    if not may_migrate:
        raise UnknownSchemaError(f"the ledger's database has schema version {revision}: migrate it first")
    # Before the transaction, so that it begins after another replica's has ended and sees what that one made.
    await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
    await connection.execute(f"SELECT pg_advisory_lock({_MIGRATION_LOCK})", timeout=_MIGRATION_S)
    try:
        async with connection.transaction():
            revision = await _revision(connection)
            if revision != HEAD:
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                await connection.execute(upgrade_script("postgresql", revision), timeout=_MIGRATION_S)
    finally:
        await connection.execute(f"SELECT pg_advisory_unlock({_MIGRATION_LOCK})")


async def add_months(connection: Any, today: datetime.date) -> None:
    """Makes the partitions of this month and of the next ones, where they are missing."""
    for ahead in range(MONTHS_AHEAD + 1):
        months = today.year * 12 + today.month - 1 + ahead
        month = datetime.date(months // 12, months % 12 + 1, 1)
        await connection.execute("SELECT add_usage_month($1)", month)


async def _revision(connection: Any) -> str | None:
    """The revision of the database; None for one without a ledger. Raises UnknownSchemaError."""
    if await connection.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.alembic_version") is None:
        return None
    found = await connection.fetch(f"SELECT version_num FROM {SCHEMA}.alembic_version")  # noqa: S608
    revision = ", ".join(row[0] for row in found)
    check_known(revision, "the ledger's database")
    return revision
