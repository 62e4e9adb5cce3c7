"""Brings the accounts' schema up, and says whether this program may serve on the one that it finds.

Owns the rule of versions; refuses to know the steps (`migrations`) and how a driver connects.

A database is behind (it is brought up, or refused if that is not allowed), equal, or ahead. One that is ahead is served
if its own record says that programs of this version still work on it: that is what expand and contract is for.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from alembic.config import Config

KNOWN = "0002"
_LOCATION = Path(__file__).parent.parent / "migrations"
_BEFORE_ALEMBIC = "schema_version"  # databases made before there were migrations hold this table; they are at 0001


class AccountSchemaError(Exception):
    """The database was made by another version of this program."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a database says of itself. `revision` empty: it has no schema yet."""

    revision: str = ""
    oldest_program: str = ""


def must_upgrade(where: str, found: Found, *, allowed: bool) -> bool:
    """Whether steps must run before this program can serve. Raises AccountSchemaError if it never can."""
    if found.revision > KNOWN and (found.oldest_program or found.revision) > KNOWN:
        raise AccountSchemaError(
            f"{where}: schema version {found.revision} serves programs that know "
            f"{found.oldest_program or found.revision} or later, this one knows {KNOWN}"
        )
    if found.revision >= KNOWN:
        return False
    if not allowed:
        raise AccountSchemaError(
            f"{where}: schema version {found.revision or 'none'}, this program needs {KNOWN} and may not bring it up: "
            "run `python -m services.auth_and_limits.migrate`"
        )
    return True


def look(connection: sa.Connection) -> Found:
    """What a SQLite database says of itself."""
    tables = set(sa.inspect(connection).get_table_names())
    if "alembic_version" not in tables:
        return Found("0001" if _BEFORE_ALEMBIC in tables else "")
    revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
    oldest = ""
    if "schema_compatibility" in tables:
        oldest = connection.execute(sa.text("SELECT oldest_program FROM schema_compatibility")).scalar_one()
    return Found(str(revision), str(oldest))


def upgrade(connection: sa.Connection, found: Found) -> None:
    """Runs the missing steps on a connection."""
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    if found.revision == "0001" and not sa.inspect(connection).has_table("alembic_version"):
        command.stamp(config, found.revision)
    command.upgrade(config, KNOWN)


def upgrade_script(found: Found) -> str:
    """The missing steps as one PostgreSQL script, for a driver that Alembic cannot speak through."""
    from alembic import command

    config = _config()
    config.output_buffer = script = io.StringIO()
    command.upgrade(config, f"{found.revision}:{KNOWN}" if found.revision else KNOWN, sql=True)
    return script.getvalue()


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_LOCATION))
    config.set_main_option("path_separator", "os")
    return config
