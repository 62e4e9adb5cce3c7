"""The hold journal's SQLite file: its schema, and the statements that write and read it.

Owns the SQL and the file's lock; refuses to know loops, waiters and decisions. Used from one thread at a time.
"""

import fcntl
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.auth_and_limits.adapters.memory_records import Changes
from services.auth_and_limits.holds import Hold, HoldState

SCHEMA_VERSION = 1
_BUSY_S = 0.2
_LARGEST_UNITS = 2**62

_SCHEMA = """
CREATE TABLE holds (
    call_id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL,
    runner TEXT NOT NULL,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    state INTEGER NOT NULL,
    amount_nano_usd INTEGER NOT NULL,
    rate_tokens INTEGER NOT NULL,
    price_book_version TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    tokens_are_final INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE purses (
    account_id TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    balance_nano_usd INTEGER NOT NULL,
    lifetime_paid_nano_usd INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE meters (
    meter_id TEXT PRIMARY KEY,
    requests_owed_units INTEGER NOT NULL,
    requests_at_us INTEGER NOT NULL,
    tokens_owed_units INTEGER NOT NULL,
    tokens_at_us INTEGER NOT NULL
) WITHOUT ROWID;
"""
_HOLD_COLUMNS = (
    "call_id, run_id, runner, account_id, key_id, state, amount_nano_usd, rate_tokens, price_book_version, "
    "idempotency_key, body_sha256, tokens_are_final"
)
_HOLD_FIELDS = _HOLD_COLUMNS.split(", ")
_INSERT = f"INSERT INTO holds ({_HOLD_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"  # noqa: S608 - constants only
_INSERT_OR_PASS = _INSERT.replace("INSERT", "INSERT OR IGNORE", 1)
_REPLACE = _INSERT.replace("INSERT", "INSERT OR REPLACE", 1)
_SELECT = f"SELECT {_HOLD_COLUMNS} FROM holds"  # noqa: S608 - constants only
# An admission that nobody was told of. The run and the state keep an older call of the same id on file.
_REMOVE = "DELETE FROM holds WHERE call_id = ? AND run_id = ? AND state = 1"
_PUT_PURSE = "INSERT OR REPLACE INTO purses VALUES (?,?,?,?)"
_PUT_METERS = "INSERT OR REPLACE INTO meters VALUES (?,?,?,?,?)"
_FORGET = """DELETE FROM holds WHERE call_id IN (
    SELECT call_id FROM holds WHERE state >= 3 AND call_id < :before
    AND (idempotency_key = '' OR call_id < :keyed_before) LIMIT 2000)"""

Row = tuple[Any, ...]


class JournalError(Exception):
    """The journal cannot be used: another process owns it, or its schema is not ours."""


@dataclass(slots=True)
class Recovered:
    """What the journal remembers of an earlier process."""

    holds: list[Hold]  # live ones, and closed ones that an idempotency key stands for
    purses: list[tuple[str, int, int, int]]
    meters: list[tuple[str, int, int, int, int]]  # instants in unix µs


@dataclass(slots=True)
class Rows:
    """A batch as it is written: made on the loop's thread, since its objects go on changing there."""

    removed: list[Row]
    fresh: list[Row]
    changed: list[Row]
    purses: list[Row]
    meters: list[Row]


class JournalFile:
    """The open file. Only one process may have it open, since the decisions are made in that process's memory."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise JournalError(f"{path}: another process has this journal open") from error
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S, cached_statements=32
        )
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._check_schema(path)
        except sqlite3.DatabaseError as error:
            self.close()
            raise JournalError(f"{path} cannot be used as a journal: {error}") from error

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()
        self._lock.close()

    def write(self, rows: Rows) -> frozenset[int]:
        """Writes everything or nothing, durably. Returns the places of fresh holds whose call id is on file already."""
        try:
            with self._transaction():
                self._connection.executemany(_REMOVE, rows.removed)
                self._connection.executemany(_INSERT, rows.fresh)
                self._write_changes(rows)
        except sqlite3.IntegrityError:
            return self._write_one_by_one(rows)
        return frozenset()

    def find(self, call_ids: Sequence[str]) -> dict[str, Hold]:
        """The holds of these calls that are on file."""
        found = (self._connection.execute(_SELECT + " WHERE call_id = ?", (call_id,)) for call_id in call_ids)
        return {row[0]: _hold(row) for cursor in found for row in cursor}

    def forget(self, before_id: str, keyed_before_id: str) -> int:
        """Drops some closed holds that are old enough; returns how many, 0 when none is left."""
        cursor = self._connection.execute(_FORGET, {"before": before_id, "keyed_before": keyed_before_id})
        return cursor.rowcount

    def recover(self) -> Recovered:
        """Everything that an earlier process left."""
        holds = self._connection.execute(_SELECT + " WHERE state < 3 OR (state = 3 AND idempotency_key != '')")
        return Recovered(
            holds=[_hold(row) for row in holds],
            purses=self._connection.execute("SELECT * FROM purses").fetchall(),
            meters=self._connection.execute("SELECT * FROM meters").fetchall(),
        )

    def _write_one_by_one(self, rows: Rows) -> frozenset[int]:
        """The rare case: finds out which of the fresh holds are not."""
        with self._transaction():
            self._connection.executemany(_REMOVE, rows.removed)
            inserted = [self._connection.execute(_INSERT_OR_PASS, row).rowcount for row in rows.fresh]
            self._write_changes(rows)
        return frozenset(index for index, count in enumerate(inserted) if not count)

    def _write_changes(self, rows: Rows) -> None:
        self._connection.executemany(_REPLACE, rows.changed)
        self._connection.executemany(_PUT_PURSE, rows.purses)
        self._connection.executemany(_PUT_METERS, rows.meters)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _check_schema(self, path: Path) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            self.close()
            raise JournalError(f"{path}: schema version {version}, this program knows {SCHEMA_VERSION}")


def _hold(row: Row) -> Hold:
    values = dict(zip(_HOLD_FIELDS, row, strict=True))
    values["state"] = HoldState(values["state"])
    values["tokens_are_final"] = bool(values["tokens_are_final"])
    return Hold(**values)


def rows_of(changes: Changes, unix_offset_us: int) -> Rows:
    return Rows(
        removed=[(hold.call_id, hold.run_id) for hold in changes.removed],
        fresh=[_hold_row(hold) for hold in changes.fresh],
        changed=[_hold_row(hold) for hold in changes.changed.values()],
        purses=[
            (purse.account_id, purse.seq, purse.balance_nano_usd, purse.lifetime_paid_nano_usd)
            for purse in changes.purses.values()
        ],
        meters=[
            (
                meters.meter_id,
                min(meters.requests.owed_units, _LARGEST_UNITS),
                meters.requests.at_us + unix_offset_us,
                min(meters.tokens.owed_units, _LARGEST_UNITS),
                meters.tokens.at_us + unix_offset_us,
            )
            for meters in changes.meters.values()
        ],
    )


def _hold_row(hold: Hold) -> Row:
    return (
        hold.call_id,
        hold.run_id,
        hold.runner,
        hold.account_id,
        hold.key_id,
        int(hold.state),
        hold.amount_nano_usd,
        hold.rate_tokens,
        hold.price_book_version,
        hold.idempotency_key,
        hold.body_sha256,
        hold.tokens_are_final,
    )
