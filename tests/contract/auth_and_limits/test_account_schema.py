"""The accounts' schema: its steps lead to what the program queries, on both databases, and only expand.

Owns the history of the schema; what a store keeps in it is in `test_account_store.py`.
"""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.auth_and_limits.adapters import sql_migrations as migrations
from services.auth_and_limits.adapters import sql_schema as schema
from services.auth_and_limits.adapters.sql_migrations import AccountSchemaError, Found, must_upgrade
from services.auth_and_limits.migrate import bring_up
from services.auth_and_limits.settings import MigrationSettings
from tests.postgres_server import PostgresServer


@pytest.fixture
def migrated() -> sa.Engine:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with engine.begin() as connection:
        migrations.upgrade(connection, migrations.look(connection))
    return engine


def test_the_steps_lead_to_the_tables_that_are_queried(migrated: sa.Engine) -> None:
    ours = set(schema.metadata.tables)
    with migrated.begin() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, kind, _: kind != "table" or name in ours}
        )
        assert compare_metadata(context, schema.metadata) == []


async def test_both_databases_have_the_same_columns(
    migrated: sa.Engine, postgres: PostgresServer, postgres_url: str
) -> None:
    await bring_up(MigrationSettings(postgres_url=postgres_url))
    listed = postgres.execute(
        "SELECT table_name || '.' || column_name || ' ' || is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'auth' AND table_name NOT LIKE 'alembic%'",
        postgres_url.rpartition("/")[2],
    )
    inspector = sa.inspect(migrated)
    ours = {
        f"{table}.{column['name']} {'YES' if column['nullable'] else 'NO'}"
        for table in inspector.get_table_names()
        if not table.startswith("alembic")
        for column in inspector.get_columns(table)
    }
    assert set(listed.splitlines()) == ours


def test_a_program_of_the_version_before_can_still_write(migrated: sa.Engine) -> None:
    with migrated.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO accounts (account_id, name, plan, suspended, created_at_ms, request_id, request_sha256)"
                " VALUES ('a', 'n', 'p', 0, 1, 'r', x'00')"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO keys (key_id, account_id, name, prefix, digest, created_at_ms)"
                " VALUES ('k', 'a', 'n', 'p', x'00', 1)"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO audit_events (event_id, at_ms, actor, action, account_id, resource_id, changes)"
                " VALUES ('e', 1, 'admin', 'account.created', 'a', 'a', '{}')"
            )
        )


@pytest.mark.parametrize(
    ("found", "allowed", "outcome"),
    [
        pytest.param(Found(), True, True, id="an empty database is brought up"),
        pytest.param(Found("0001"), True, True, id="an older one is brought up"),
        pytest.param(
            Found("0001"), False, "may not bring it up", id="an older one is refused where that is not allowed"
        ),
        pytest.param(Found(), False, "version none", id="an empty one is refused where that is not allowed"),
        pytest.param(Found(migrations.KNOWN, "0001"), False, False, id="the known one is served"),
        pytest.param(Found("9999", migrations.KNOWN), True, False, id="a newer one that was expanded is served"),
        pytest.param(Found("9999", "9998"), True, "9998", id="a newer one that was contracted is refused"),
        pytest.param(Found("9999"), True, "9999", id="a newer one that says nothing is refused"),
    ],
)
def test_which_schema_is_served(found: Found, allowed: bool, outcome: bool | str) -> None:
    if isinstance(outcome, bool):
        assert must_upgrade("here", found, allowed=allowed) is outcome
        return
    with pytest.raises(AccountSchemaError, match=outcome):
        must_upgrade("here", found, allowed=allowed)


def test_the_script_for_a_server_holds_what_is_missing_alone() -> None:
    whole, rest = migrations.upgrade_script(Found()), migrations.upgrade_script(Found("0001"))

    assert "CREATE TABLE accounts" in whole
    assert "CREATE TABLE accounts" not in rest
    assert "ADD COLUMN revision" in rest


async def test_a_file_is_brought_up_by_the_command_too(tmp_path: Path) -> None:
    await bring_up(MigrationSettings(data_dir=tmp_path))

    with sa.create_engine(f"sqlite:///{tmp_path / 'auth' / 'accounts.sqlite3'}").begin() as connection:
        assert migrations.look(connection) == Found(migrations.KNOWN, "0001")
    with pytest.raises(AccountSchemaError, match="neither"):
        await bring_up(MigrationSettings())
