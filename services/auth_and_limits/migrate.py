"""`python -m services.auth_and_limits.migrate`: brings the schema of accounts up, and ends.

Owns what a roll-out runs before its first new process, where processes may not do it themselves (`MWS_AUTH_MIGRATE`).
"""

import asyncio
import sys

from services.auth_and_limits.adapters.sql_database import SqliteDatabase
from services.auth_and_limits.adapters.sql_migrations import KNOWN, AccountSchemaError
from services.auth_and_limits.settings import MigrationSettings
from services.runtime.ids import new_id

_NO, _YES = 1, 0


async def bring_up(settings: MigrationSettings) -> None:
    """Runs the missing steps. Raises AccountSchemaError, OSError."""
    if settings.postgres_url is not None:
        from services.auth_and_limits.adapters.sql_postgres import LOST, PostgresDatabase
        from services.auth_and_limits.adapters.sql_replicas import Replicas

        database = PostgresDatabase(settings.postgres_url.get_secret_value(), Replicas(new_id()))
        try:
            (await database.connect("mws-auth-migration")).terminate()
        except LOST as error:
            raise AccountSchemaError(f"PostgreSQL: {str(error) or type(error).__name__}") from error
    elif settings.data_dir is not None:
        await (await SqliteDatabase.open(settings.data_dir / "auth" / "accounts.sqlite3")).close()
    else:
        raise AccountSchemaError("neither MWS_AUTH_POSTGRES_URL nor MWS_AUTH_DATA_DIR is set")


def main() -> int:
    """Says on stderr what went wrong; 0 if the schema is up."""
    try:
        asyncio.run(bring_up(MigrationSettings()))
    except (AccountSchemaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _NO
    print(f"the schema of accounts is at {KNOWN}, or newer and compatible")
    return _YES


if __name__ == "__main__":
    sys.exit(main())
