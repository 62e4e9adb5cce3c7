"""The embedded ledger's file: made, brought to the newest revision, or refused.

Owns how a file says what it is; refuses to read or write a record, and to know the tables (see migrations).
"""

import sqlite3

from services.metering.migrations import HEAD, UnknownSchemaError, check_known, upgrade_script

APPLICATION_ID = 0x4D57534C  # "MWSL": the file is a ledger of ours
FILE_FORMAT = 2

USAGE_CLASSES = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "search_units",
)


APPEND_ONLY_TABLES = (
    "price_books",
    "usage_events",
    "transfers",
    "grants",
    "void_markers",
    "rejected_events",
    "balance_events",
)


def prepare(connection: sqlite3.Connection) -> None:
    """Brings an empty file, or one of ours that is older, to the newest revision.

    Raises UnknownSchemaError for any other file. One transaction: a crash leaves the file as it was.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        revision = None if _is_empty(connection) else _revision(connection)
        if revision != HEAD:
            for statement in _statements(upgrade_script("sqlite", revision)):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FILE_FORMAT}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _revision(connection: sqlite3.Connection) -> str:
    application_id, file_format = application_and_version(connection)
    if application_id != APPLICATION_ID or not 1 <= file_format <= FILE_FORMAT:
        raise UnknownSchemaError(
            f"the ledger file has application id {application_id:#x} and schema version {file_format}; "
            f"this release serves {APPLICATION_ID:#x} and {FILE_FORMAT} only"
        )
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'alembic_version'").fetchone() is None:
        # Early files say their revision in the format alone.
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (f"{file_format:04}",))
    found = [revision for (revision,) in connection.execute("SELECT version_num FROM alembic_version")]
    revision = ", ".join(found)
    check_known(revision, "the ledger file")
    return revision


def application_and_version(connection: sqlite3.Connection) -> tuple[int, int]:
    """What the file says that it is."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application_id, version


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def _statements(script: str) -> list[str]:
    """Cuts a script into statements; executescript would commit our transaction first."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += "" if line.startswith("--") else line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
