"""The embedded ledger's tables and the triggers that make them append-only; opens files of the known version only.

Owns the text of the schema and its version; refuses to read or write a row of it.
"""

import sqlite3
from collections.abc import Sequence

APPLICATION_ID = 0x4D57534C  # "MWSL": the file is a ledger of ours
VERSION = 2

USAGE_CLASSES = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "search_units",
)


def _usage_columns(prefix: str) -> str:
    return ", ".join(f"{prefix}_{name} INTEGER CHECK ({prefix}_{name} >= 0)" for name in USAGE_CLASSES)


_TABLES = f"""
CREATE TABLE price_books (
    version TEXT PRIMARY KEY,
    canonical_json TEXT NOT NULL,
    registered_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_events (
    id INTEGER PRIMARY KEY,
    call_id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    application TEXT NOT NULL,
    operation TEXT NOT NULL,
    profile TEXT NOT NULL,
    requested_model TEXT NOT NULL,
    upstream TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    price_book_version TEXT NOT NULL,
    ending INTEGER NOT NULL,
    {_usage_columns("reported")},
    {_usage_columns("delivered")},
    upstream_accepted INTEGER NOT NULL,
    held_nano_usd INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL,
    ended_at_us INTEGER NOT NULL,
    rule TEXT NOT NULL,
    {_usage_columns("charged")},
    charged_nano_usd INTEGER NOT NULL CHECK (charged_nano_usd >= 0),
    flags TEXT NOT NULL,
    recorded_at_us INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_events_by_account ON usage_events (account_id, recorded_at_us);

CREATE TABLE transfers (
    id INTEGER PRIMARY KEY,
    transfer_id TEXT NOT NULL UNIQUE,
    debit TEXT NOT NULL,
    credit TEXT NOT NULL,
    amount_nano_usd INTEGER NOT NULL CHECK (amount_nano_usd > 0),
    call_id TEXT,
    rule TEXT NOT NULL,
    flags TEXT NOT NULL,
    reference TEXT,
    posted_at_us INTEGER NOT NULL,
    -- One side of every transfer is a customer.
    customer TEXT GENERATED ALWAYS AS (CASE WHEN debit GLOB 'customer:*' THEN debit ELSE credit END) VIRTUAL,
    CHECK (debit <> credit)
) STRICT;
CREATE UNIQUE INDEX transfers_once_per_call ON transfers (call_id) WHERE call_id IS NOT NULL;
CREATE INDEX transfers_by_customer ON transfers (customer, posted_at_us);

CREATE TABLE grants (
    account_id TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    kind TEXT NOT NULL,
    expires_at_us INTEGER,
    balance_nano_usd INTEGER NOT NULL,
    transfer_id TEXT NOT NULL UNIQUE,
    PRIMARY KEY (account_id, idempotency_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE void_markers (
    call_id TEXT PRIMARY KEY,
    marked_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE rejected_events (
    sha256 BLOB PRIMARY KEY,
    call_id TEXT NOT NULL,
    detail TEXT NOT NULL,
    event_json TEXT NOT NULL,
    rejected_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Projections: recomputable from the tables above, updated in the same transaction.
CREATE TABLE balances (
    account TEXT PRIMARY KEY,
    balance_nano_usd INTEGER NOT NULL,
    lifetime_paid_nano_usd INTEGER NOT NULL DEFAULT 0,
    promotional_nano_usd INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE promotions (
    grant_id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL,
    expires_at_us INTEGER,
    remaining_nano_usd INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX promotions_left ON promotions (account_id) WHERE remaining_nano_usd > 0;
CREATE INDEX promotions_due ON promotions (expires_at_us) WHERE remaining_nano_usd > 0 AND expires_at_us IS NOT NULL;

-- What auth-and-limits has not acknowledged yet. AUTOINCREMENT: a row id is never used again.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    balance_nano_usd INTEGER NOT NULL,
    lifetime_paid_nano_usd INTEGER NOT NULL,
    closed_call_ids TEXT NOT NULL
) STRICT;
CREATE TABLE acknowledged (
    account_id TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

# What version 2 added to version 1: it is made in a new file, and in one that an earlier release left.
_SINCE_2 = """
-- Corrections by what they correct, and ends of promotions. No charge has a reference, so it costs a call nothing.
CREATE INDEX transfers_by_reference ON transfers (reference) WHERE reference IS NOT NULL;

-- A balance fell below a threshold.
CREATE TABLE balance_events (
    id INTEGER PRIMARY KEY,
    account_id TEXT NOT NULL,
    threshold_nano_usd INTEGER NOT NULL,
    balance_nano_usd INTEGER NOT NULL,
    occurred_at_us INTEGER NOT NULL
) STRICT;
CREATE INDEX balance_events_by_account ON balance_events (account_id, occurred_at_us);

-- The events that nobody has been told of yet.
CREATE TABLE unannounced_balance_events (
    id INTEGER PRIMARY KEY
) STRICT;
"""

APPEND_ONLY_TABLES = (
    "price_books",
    "usage_events",
    "transfers",
    "grants",
    "void_markers",
    "rejected_events",
    "balance_events",
)


def _triggers(tables: Sequence[str]) -> str:
    return "\n".join(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;"
        for table in tables
        for verb in ("UPDATE", "DELETE")
    )


class UnknownSchemaError(Exception):
    """The file is not a ledger of the version that this code knows."""


def prepare(connection: sqlite3.Connection) -> None:
    """Makes the schema in an empty file, and brings one of version 1 up to date.

    Raises UnknownSchemaError unless the file is ours and of this version.
    """
    connection.execute("BEGIN IMMEDIATE")
    if _is_empty(connection):
        _run(connection, _TABLES + _SINCE_2 + _triggers(APPEND_ONLY_TABLES))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    elif application_and_version(connection) == (APPLICATION_ID, 1):
        _run(connection, _SINCE_2 + _triggers(["balance_events"]))
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
    application_id, version = application_and_version(connection)
    if (application_id, version) != (APPLICATION_ID, VERSION):
        raise UnknownSchemaError(
            f"the ledger file has application id {application_id:#x} and schema version {version}; "
            f"this release serves {APPLICATION_ID:#x} and {VERSION} only"
        )


def application_and_version(connection: sqlite3.Connection) -> tuple[int, int]:
    """What the file says that it is."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application_id, version


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def _run(connection: sqlite3.Connection, script: str) -> None:
    for statement in _statements(script):
        connection.execute(statement)


def _statements(script: str) -> list[str]:
    """Cuts a script into statements; executescript would commit our transaction first."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
