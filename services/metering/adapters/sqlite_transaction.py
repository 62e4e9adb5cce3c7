"""One write transaction on the embedded ledger.

Owns the statements that write; refuses to decide anything about money, and to begin or commit.
"""

import hashlib
import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence

from services.metering.adapters import sqlite_rows as rows
from services.metering.adapters.sqlite_reads import read_customer
from services.metering.charging import Charge, UsageEvent
from services.metering.ledger import Customer, Transfer, customer_account, is_customer
from services.metering.ports import (
    BalanceEvent,
    BalanceNotice,
    GrantRecord,
    KeptAnswer,
    KeptAnswerRecord,
    PostedCall,
    Rejection,
)
from services.metering.pricing import PriceBook, read_canonical_json

_SAVE_BALANCE = """
INSERT INTO balances (account, balance_nano_usd, lifetime_paid_nano_usd, promotional_nano_usd, seq)
VALUES (?, ?, ?, ?, ?)
ON CONFLICT (account) DO UPDATE SET balance_nano_usd = excluded.balance_nano_usd,
    lifetime_paid_nano_usd = excluded.lifetime_paid_nano_usd, promotional_nano_usd = excluded.promotional_nano_usd,
    seq = excluded.seq"""
_ADD_TO_BALANCE = """
INSERT INTO balances (account, balance_nano_usd) VALUES (?, ?)
ON CONFLICT (account) DO UPDATE SET balance_nano_usd = balance_nano_usd + excluded.balance_nano_usd"""
_SAVE_PROMOTION = """
INSERT INTO promotions (grant_id, account_id, expires_at_us, remaining_nano_usd) VALUES (?, ?, ?, ?)
ON CONFLICT (grant_id) DO UPDATE SET remaining_nano_usd = excluded.remaining_nano_usd"""
_ADD_NOTICE = """
INSERT INTO outbox (account_id, seq, balance_nano_usd, lifetime_paid_nano_usd, closed_call_ids)
VALUES (?, ?, ?, ?, ?)"""
_KEEP_ANSWER = """
INSERT INTO kept_answers (account_id, idempotency_key, call_id, body_sha256, form, message, kept_until_us)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (account_id, idempotency_key) DO UPDATE SET call_id = excluded.call_id,
    body_sha256 = excluded.body_sha256, form = excluded.form, message = excluded.message,
    kept_until_us = excluded.kept_until_us
WHERE kept_until_us <= ?"""
_SELECT_ANSWER = """
SELECT call_id, body_sha256, form, message, kept_until_us FROM kept_answers
WHERE account_id = ? AND idempotency_key = ?"""
_FORGET_ANSWERS = """
DELETE FROM kept_answers WHERE rowid IN (SELECT rowid FROM kept_answers WHERE kept_until_us <= ? LIMIT ?)"""
_ADD_BALANCE_EVENT = """
INSERT INTO balance_events (account_id, threshold_nano_usd, balance_nano_usd, occurred_at_us) VALUES (?, ?, ?, ?)"""
_UNANNOUNCED_BALANCE_EVENTS = """
SELECT id, account_id, threshold_nano_usd, balance_nano_usd, occurred_at_us
FROM unannounced_balance_events JOIN balance_events USING (id) ORDER BY id LIMIT ?"""
_ACKNOWLEDGE = """
INSERT INTO acknowledged (account_id, seq) VALUES (?, ?)
ON CONFLICT (account_id) DO UPDATE SET seq = max(seq, excluded.seq)"""


class SqliteTransaction:
    """One transaction; see `LedgerTransaction`. Appended rows gather and are written many at a time."""

    def __init__(self, connection: sqlite3.Connection, books: dict[str, PriceBook]) -> None:
        self._sql = connection
        self._books = books
        self._customers: dict[str, Customer] = {}
        self._changed: dict[str, list[str]] = {}  # account id -> the calls that were closed
        self._usage_rows: list[rows.Row] = []
        self._transfers: list[Transfer] = []
        self.notices: list[BalanceNotice] = []  # rows that it added to the outbox
        self.forgotten_up_to = 0  # rows of the outbox that it deleted, by the highest id

    def posted_calls(self, call_ids: Sequence[str]) -> dict[str, PostedCall]:
        self._write_gathered()
        found = self._sql.execute(rows.SELECT_POSTED_AMONG, (json.dumps(call_ids),))
        return {row[0]: rows.posted_call(row) for row in found}

    def void_calls(self, call_ids: Sequence[str]) -> set[str]:
        found = self._sql.execute(
            "SELECT call_id FROM void_markers WHERE call_id IN (SELECT value FROM json_each(?))",
            (json.dumps(call_ids),),
        )
        return {call_id for (call_id,) in found}

    def price_book(self, version: str) -> PriceBook | None:
        book = self._books.get(version)
        if book is None:
            row = self._sql.execute("SELECT canonical_json FROM price_books WHERE version = ?", (version,)).fetchone()
            if row is not None:
                book = self._books[version] = read_canonical_json(row[0])
        return book

    def add_price_book(self, version: str, canonical_json: str, now_us: int) -> None:
        self._sql.execute("INSERT OR IGNORE INTO price_books VALUES (?, ?, ?)", (version, canonical_json, now_us))

    def customer(self, account_id: str) -> Customer:
        customer = self._customers.get(account_id)
        if customer is None:
            customer = self._customers[account_id] = read_customer(self._sql, account_id)
        return customer

    def add_transfer(self, transfer: Transfer, account_id: str) -> None:
        self._transfers.append(transfer)
        self._changed.setdefault(account_id, [])

    def add_usage(self, event: UsageEvent, charge: Charge, now_us: int) -> None:
        self._usage_rows.append(rows.usage_row(event, charge, now_us))
        self._changed.setdefault(event.account_id, []).append(event.call_id)

    def add_void_markers(self, call_ids: Collection[str], now_us: int) -> None:
        self._sql.executemany(
            "INSERT OR IGNORE INTO void_markers VALUES (?, ?)", [(call_id, now_us) for call_id in call_ids]
        )

    def add_rejection(self, rejection: Rejection, now_us: int) -> bool:
        digest = hashlib.sha256(rejection.event_json.encode()).digest()
        inserted = self._sql.execute(
            "INSERT OR IGNORE INTO rejected_events VALUES (?, ?, ?, ?, ?)",
            (digest, rejection.call_id, rejection.detail, rejection.event_json, now_us),
        )
        return inserted.rowcount == 1

    def grant(self, account_id: str, idempotency_key: str) -> GrantRecord | None:
        self._write_gathered()
        row = self._sql.execute(
            "SELECT kind, expires_at_us, balance_nano_usd, transfer_id FROM grants"
            " WHERE account_id = ? AND idempotency_key = ?",
            (account_id, idempotency_key),
        ).fetchone()
        if row is None:
            return None
        kind, expires_at_us, balance_nano_usd, transfer_id = row
        found = self._sql.execute(rows.SELECT_TRANSFER + " WHERE transfer_id = ?", (transfer_id,)).fetchone()
        transfer = rows.transfer(found)
        return GrantRecord(account_id, idempotency_key, kind, expires_at_us, balance_nano_usd, transfer)

    def add_grant(self, grant: GrantRecord) -> None:
        self._sql.execute("INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?)", (*grant[:5], grant.transfer.transfer_id))

    def transfer_of(self, transfer_id: str, account_id: str) -> Transfer | None:
        self._write_gathered()
        found = self._sql.execute(
            rows.SELECT_TRANSFER + " WHERE transfer_id = ? AND customer = ?",
            (transfer_id, customer_account(account_id)),
        ).fetchone()
        return None if found is None else rows.transfer(found)

    def taken_back_nano_usd(self, transfer_id: str) -> int:
        self._write_gathered()
        (amount,) = self._sql.execute(
            "SELECT coalesce(sum(amount_nano_usd), 0) FROM transfers WHERE reference = ?", (transfer_id,)
        ).fetchone()
        return int(amount)

    def add_balance_event(self, event: BalanceEvent) -> None:
        row_id = self._sql.execute(_ADD_BALANCE_EVENT, event).lastrowid
        self._sql.execute("INSERT INTO unannounced_balance_events VALUES (?)", (row_id,))

    def unannounced_balance_events(self, limit: int) -> list[tuple[int, BalanceEvent]]:
        found = self._sql.execute(_UNANNOUNCED_BALANCE_EVENTS, (limit,))
        return [(row_id, BalanceEvent(*event)) for row_id, *event in found]

    def forget_balance_events(self, row_ids: Sequence[int]) -> None:
        self._sql.executemany("DELETE FROM unannounced_balance_events WHERE id = ?", [(each,) for each in row_ids])

    def keep_answer(self, record: KeptAnswerRecord, now_us: int) -> str:
        account_id, call_id, answer, kept_until_us = record
        key, body_sha256, form, message = answer
        values = (account_id, key, call_id, body_sha256, form, message, kept_until_us)
        self._sql.execute(_KEEP_ANSWER, (*values, now_us))
        (holder,) = self._sql.execute(
            "SELECT call_id FROM kept_answers WHERE account_id = ? AND idempotency_key = ?", (account_id, key)
        ).fetchone()
        return str(holder)

    def kept_answer(self, account_id: str, idempotency_key: str) -> KeptAnswerRecord | None:
        row = self._sql.execute(_SELECT_ANSWER, (account_id, idempotency_key)).fetchone()
        if row is None:
            return None
        return KeptAnswerRecord(account_id, row[0], KeptAnswer(idempotency_key, *row[1:4]), row[4])

    def forget_answers(self, until_us: int, limit: int) -> int:
        return self._sql.execute(_FORGET_ANSWERS, (until_us, limit)).rowcount

    def accounts_with_due_promotions(self, now_us: int, limit: int) -> list[str]:
        self.flush()
        found = self._sql.execute(
            "SELECT DISTINCT account_id FROM promotions"
            " WHERE remaining_nano_usd > 0 AND expires_at_us IS NOT NULL AND expires_at_us <= ? LIMIT ?",
            (now_us, limit),
        )
        return [account_id for (account_id,) in found]

    def notice_mark(self, account_id: str) -> int:
        self.flush()
        (mark,) = self._sql.execute("SELECT max(id) FROM outbox WHERE account_id = ?", (account_id,)).fetchone()
        return mark or 0

    def forget_notices(self, up_to_row_id: int, acknowledged_seqs: Mapping[str, int]) -> None:
        self._sql.execute("DELETE FROM outbox WHERE id <= ?", (up_to_row_id,))
        self.forgotten_up_to = max(self.forgotten_up_to, up_to_row_id)
        self._sql.executemany(_ACKNOWLEDGE, acknowledged_seqs.items())

    def flush(self) -> None:
        """Writes what has gathered; changed customers get their next seq and a row in the outbox."""
        self._write_gathered()
        changed, self._changed = self._changed, {}
        if not changed:
            return
        balances: list[rows.Row] = []
        for account_id in changed:
            customer = self.customer(account_id)
            customer.seq += 1
            facts = (customer.balance_nano_usd, customer.lifetime_paid_nano_usd)
            balances.append((customer_account(account_id), *facts, customer.promotional_nano_usd, customer.seq))
            self._save_promotions(customer)
        self._sql.executemany(_SAVE_BALANCE, balances)
        self._add_notices(changed)

    def _add_notices(self, changed: Mapping[str, Sequence[str]]) -> None:
        for account_id, closed_call_ids in changed.items():
            customer = self.customer(account_id)
            facts = (account_id, customer.seq, customer.balance_nano_usd, customer.lifetime_paid_nano_usd)
            row_id = self._sql.execute(_ADD_NOTICE, (*facts, ",".join(closed_call_ids))).lastrowid
            assert row_id is not None
            self.notices.append(BalanceNotice(row_id, *facts, tuple(closed_call_ids)))

    def _save_promotions(self, customer: Customer) -> None:
        touched, customer.touched = customer.touched, {}
        for promotion in touched.values():
            self._sql.execute(
                _SAVE_PROMOTION,
                (promotion.grant_id, customer.account_id, promotion.expires_at_us, promotion.remaining_nano_usd),
            )

    def _write_gathered(self) -> None:
        if self._usage_rows:
            self._sql.executemany(rows.INSERT_USAGE, self._usage_rows)
            self._usage_rows = []
        if self._transfers:
            self._sql.executemany(rows.INSERT_TRANSFER, self._transfers)
            self._sql.executemany(_ADD_TO_BALANCE, _counterpart_changes(self._transfers).items())
            self._transfers = []


def _counterpart_changes(transfers: Sequence[Transfer]) -> dict[str, int]:
    """What the sides that are no customers gain or lose."""
    changes: dict[str, int] = {}
    for transfer in transfers:
        for account, sign in ((transfer.credit, 1), (transfer.debit, -1)):
            if not is_customer(account):
                changes[account] = changes.get(account, 0) + sign * transfer.amount_nano_usd
    return changes
