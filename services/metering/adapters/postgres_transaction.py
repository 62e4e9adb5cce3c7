"""One write transaction on the ledger in PostgreSQL, beside those of other replicas.

Owns the statements that write and the locks that they need; refuses to decide anything about money.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence

from services.metering.adapters import postgres_rows as rows
from services.metering.adapters.postgres_connection import BlockingConnection
from services.metering.charging import Charge, UsageEvent
from services.metering.ledger import Customer, Promotion, Transfer, account_id_of, customer_account, is_customer
from services.metering.ports import (
    BalanceEvent,
    Footprint,
    GrantRecord,
    KeptAnswer,
    KeptAnswerRecord,
    PostedCall,
    Rejection,
)
from services.metering.pricing import PriceBook, read_canonical_json

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
# Void markers and postings of the same call exclude each other: who marks runs alone, who posts runs beside others.
_CALLS_LOCK = int.from_bytes(hashlib.sha256(b"mws_metering.calls").digest()[:6], "big")
_BEGIN_BESIDE = f"BEGIN; SELECT pg_advisory_xact_lock_shared({_CALLS_LOCK})"
_BEGIN_ALONE = f"BEGIN; SELECT pg_advisory_xact_lock({_CALLS_LOCK})"

# Locked in one order by every replica, so that no two wait for each other.
_LOCK_CUSTOMERS = """
SELECT account, balance_nano_usd, lifetime_paid_nano_usd, seq, promotional_nano_usd FROM balances
WHERE account = ANY ($1::text[]) AND shard = 0 ORDER BY account FOR UPDATE"""
_MAKE_CUSTOMERS = """
INSERT INTO balances (account) SELECT account FROM unnest($1::text[]) AS account ORDER BY account
ON CONFLICT DO NOTHING"""
_SELECT_PROMOTIONS = """
SELECT account_id, grant_id, expires_at_us, remaining_nano_usd FROM promotions
WHERE account_id = ANY ($1::text[]) AND remaining_nano_usd > 0"""
_SAVE_CUSTOMERS = """
WITH changed AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])
        AS changed (account_id, seq, balance, paid, promotional, closed)
), saved AS (
    UPDATE balances SET balance_nano_usd = balance, lifetime_paid_nano_usd = paid,
        promotional_nano_usd = promotional, seq = changed.seq
    FROM changed WHERE account = 'customer:' || account_id AND shard = 0
)
INSERT INTO outbox (account_id, seq, balance_nano_usd, lifetime_paid_nano_usd, closed_call_ids)
SELECT account_id, seq, balance, paid, closed FROM changed"""
_ADD_TO_BALANCES = """
INSERT INTO balances AS known (account, shard, balance_nano_usd)
SELECT account, $3, amount FROM unnest($1::text[], $2::bigint[]) AS change (account, amount) ORDER BY account
ON CONFLICT (account, shard) DO UPDATE SET balance_nano_usd = known.balance_nano_usd + excluded.balance_nano_usd"""
_SAVE_PROMOTIONS = """
INSERT INTO promotions (grant_id, account_id, expires_at_us, remaining_nano_usd)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[])
ON CONFLICT (grant_id) DO UPDATE SET remaining_nano_usd = excluded.remaining_nano_usd"""
_DUE = """
SELECT DISTINCT account_id FROM promotions
WHERE remaining_nano_usd > 0 AND expires_at_us IS NOT NULL AND expires_at_us <= $1 LIMIT $2"""

_KEEP_ANSWER = """
INSERT INTO kept_answers AS known (account_id, idempotency_key, call_id, body_sha256, form, message, kept_until_us)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (account_id, idempotency_key) DO UPDATE SET call_id = excluded.call_id,
    body_sha256 = excluded.body_sha256, form = excluded.form, message = excluded.message,
    kept_until_us = excluded.kept_until_us
WHERE known.kept_until_us <= $8"""
_SELECT_ANSWER = """
SELECT call_id::text, body_sha256, form, message, kept_until_us FROM kept_answers
WHERE account_id = $1 AND idempotency_key = $2"""
_FORGET_ANSWERS = """
WITH forgotten AS (
    DELETE FROM kept_answers WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM kept_answers WHERE kept_until_us <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED
    )) RETURNING 1
) SELECT count(*) FROM forgotten"""


class PostgresTransaction:
    """One transaction; see `LedgerTransaction`. What the jobs said that they touch is read and locked at its start."""

    def __init__(self, connection: BlockingConnection, books: dict[str, PriceBook], shard: int) -> None:
        self._sql = connection
        self._books = books
        self._shard = shard
        self._posted: dict[str, PostedCall] = {}
        self._void: set[str] = set()
        self._asked: set[str] = set()  # the calls of which the two above know
        self._customers: dict[str, Customer] = {}
        self._changed: dict[str, list[str]] = {}  # account id -> the calls that were closed
        self._usage_rows: list[rows.Row] = []
        self._transfers: list[Transfer] = []

    def begin(self, footprints: Sequence[Footprint | None]) -> None:
        """Opens the transaction and fetches what its jobs will ask for."""
        is_alone = any(footprint is None or footprint.marks_void for footprint in footprints)
        self._sql.run(_BEGIN_ALONE if is_alone else _BEGIN_BESIDE)
        known = [footprint for footprint in footprints if footprint is not None]
        # Accounts first: once their rows are ours, no other replica posts for them, and what we then read stays true.
        self._lock_customers({account_id for footprint in known for account_id in footprint.account_ids})
        self._ask_for_calls({call_id for footprint in known for call_id in footprint.call_ids})

    # ---- reading ----

    def posted_calls(self, call_ids: Sequence[str]) -> dict[str, PostedCall]:
        self._ask_for_calls(set(call_ids) - self._asked)
        return {call_id: self._posted[call_id] for call_id in call_ids if call_id in self._posted}

    def void_calls(self, call_ids: Sequence[str]) -> set[str]:
        self._ask_for_calls(set(call_ids) - self._asked)
        return self._void.intersection(call_ids)

    def price_book(self, version: str) -> PriceBook | None:
        book = self._books.get(version)
        if book is None:
            found = self._sql.fetch("SELECT canonical_json FROM price_books WHERE version = $1", version)
            if found:
                book = self._books[version] = read_canonical_json(found[0][0])
        return book

    def customer(self, account_id: str) -> Customer:
        if account_id not in self._customers:
            self._lock_customers({account_id})
        return self._customers[account_id]

    def grant(self, account_id: str, idempotency_key: str) -> GrantRecord | None:
        self.customer(account_id)  # its lock keeps another replica from granting under this key meanwhile
        self._write_gathered()
        found = self._sql.fetch(
            "SELECT kind, expires_at_us, balance_nano_usd, transfer_id FROM grants"
            " WHERE account_id = $1 AND idempotency_key = $2",
            account_id,
            idempotency_key,
        )
        if not found:
            return None
        kind, expires_at_us, balance_nano_usd, transfer_id = found[0]
        (row,) = self._sql.fetch(f"{rows.SELECT_TRANSFER} WHERE transfer_id = $1", transfer_id)
        return GrantRecord(account_id, idempotency_key, kind, expires_at_us, balance_nano_usd, rows.transfer(row))

    def transfer_of(self, transfer_id: str, account_id: str) -> Transfer | None:
        self._write_gathered()
        found = self._sql.fetch(
            f"{rows.SELECT_TRANSFER} WHERE transfer_id = $1 AND customer = $2",
            transfer_id,
            customer_account(account_id),
        )
        return rows.transfer(found[0]) if found else None

    def taken_back_nano_usd(self, transfer_id: str) -> int:
        self._write_gathered()
        ((amount,),) = self._sql.fetch(
            "SELECT coalesce(sum(amount_nano_usd), 0) FROM transfers WHERE reference = $1", transfer_id
        )
        return int(amount)

    def unannounced_balance_events(self, limit: int) -> list[tuple[int, BalanceEvent]]:
        found = self._sql.fetch(
            "SELECT id, account_id, threshold_nano_usd, balance_nano_usd, occurred_at_us"
            " FROM unannounced_balance_events JOIN balance_events USING (id) ORDER BY id LIMIT $1"
            " FOR UPDATE OF unannounced_balance_events SKIP LOCKED",
            limit,
        )
        return [(row[0], BalanceEvent(*row[1:])) for row in found]

    def accounts_with_due_promotions(self, now_us: int, limit: int) -> list[str]:
        self.flush()
        return [account_id for (account_id,) in self._sql.fetch(_DUE, now_us, limit)]

    def notice_mark(self, account_id: str) -> int:
        self.flush()
        ((mark,),) = self._sql.fetch("SELECT max(id) FROM outbox WHERE account_id = $1", account_id)
        return mark or 0

    # ---- writing ----

    def add_price_book(self, version: str, canonical_json: str, now_us: int) -> None:
        self._sql.fetch(
            "INSERT INTO price_books VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", version, canonical_json, now_us
        )

    def add_transfer(self, transfer: Transfer, account_id: str) -> None:
        self._transfers.append(transfer)
        self._changed.setdefault(account_id, [])

    def add_usage(self, event: UsageEvent, charge: Charge, now_us: int) -> None:
        self.customer(event.account_id)
        self._usage_rows.append(rows.usage_row(event, charge, now_us))
        self._changed.setdefault(event.account_id, []).append(event.call_id)
        self._posted[event.call_id] = PostedCall(
            event.call_id, charge.rule, charge.nano_usd, charge.usage, event.account_id
        )

    def add_void_markers(self, call_ids: Collection[str], now_us: int) -> None:
        self._sql.fetch(
            "INSERT INTO void_markers SELECT call_id, $2 FROM unnest($1::uuid[]) AS call_id ON CONFLICT DO NOTHING",
            sorted(call_ids),
            now_us,
        )
        self._void.update(call_ids)

    def add_rejection(self, rejection: Rejection, now_us: int) -> bool:
        digest = hashlib.sha256(rejection.event_json.encode()).digest()
        texts = (text.replace("\0", "\ufffd") for text in rejection)  # what PostgreSQL's text cannot hold
        inserted = self._sql.fetch(
            "INSERT INTO rejected_events VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING 1",
            digest,
            *texts,
            now_us,
        )
        return bool(inserted)

    def add_grant(self, grant: GrantRecord) -> None:
        self._sql.fetch("INSERT INTO grants VALUES ($1, $2, $3, $4, $5, $6)", *grant[:5], grant.transfer.transfer_id)

    def add_balance_event(self, event: BalanceEvent) -> None:
        self._sql.fetch(
            "WITH event AS (INSERT INTO balance_events (account_id, threshold_nano_usd, balance_nano_usd,"
            " occurred_at_us) VALUES ($1, $2, $3, $4) RETURNING id)"
            " INSERT INTO unannounced_balance_events SELECT id FROM event",
            *event,
        )

    def forget_balance_events(self, row_ids: Sequence[int]) -> None:
        self._sql.fetch("DELETE FROM unannounced_balance_events WHERE id = ANY ($1::bigint[])", list(row_ids))

    def keep_answer(self, record: KeptAnswerRecord, now_us: int) -> str:
        account_id, call_id, answer, kept_until_us = record
        key, body_sha256, form, message = answer
        self._sql.fetch(_KEEP_ANSWER, account_id, key, call_id, body_sha256, form, message, kept_until_us, now_us)
        # A statement of its own: it sees what another replica committed while the one above waited for it.
        ((holder,),) = self._sql.fetch(
            "SELECT call_id::text FROM kept_answers WHERE account_id = $1 AND idempotency_key = $2", account_id, key
        )
        return str(holder)

    def kept_answer(self, account_id: str, idempotency_key: str) -> KeptAnswerRecord | None:
        found = self._sql.fetch(_SELECT_ANSWER, account_id, idempotency_key)
        if not found:
            return None
        call_id, body_sha256, form, message, kept_until_us = found[0]
        answer = KeptAnswer(idempotency_key, body_sha256, form, message)
        return KeptAnswerRecord(account_id, call_id, answer, kept_until_us)

    def forget_answers(self, until_us: int, limit: int) -> int:
        ((count,),) = self._sql.fetch(_FORGET_ANSWERS, until_us, limit)
        return int(count)

    def flush(self) -> None:
        """Writes what has gathered; changed customers get their next seq and a row in the outbox."""
        self._write_gathered()
        changed, self._changed = self._changed, {}
        if not changed:
            return
        facts: list[rows.Row] = []
        touched: list[rows.Row] = []
        for account_id, closed_call_ids in changed.items():
            customer = self.customer(account_id)
            customer.seq += 1
            promotions, customer.touched = customer.touched, {}
            touched += [
                (each.grant_id, account_id, each.expires_at_us, each.remaining_nano_usd) for each in promotions.values()
            ]
            balance = customer.balance_nano_usd, customer.lifetime_paid_nano_usd, customer.promotional_nano_usd
            facts.append((account_id, customer.seq, *balance, ",".join(closed_call_ids)))
        if touched:
            self._sql.fetch(_SAVE_PROMOTIONS, *_columns(touched))
        self._sql.fetch(_SAVE_CUSTOMERS, *_columns(facts))

    def _write_gathered(self) -> None:
        if self._usage_rows:
            self._sql.copy("usage_events", rows.USAGE_COLUMNS, self._usage_rows)
            self._usage_rows = []
        if self._transfers:
            self._sql.copy("transfers", rows.TRANSFER_COLUMNS, self._transfers)
            changes = _counterpart_changes(self._transfers)
            self._sql.fetch(_ADD_TO_BALANCES, list(changes), list(changes.values()), self._shard)
            self._transfers = []

    # ---- what is read ahead ----

    def _ask_for_calls(self, call_ids: set[str]) -> None:
        self._asked |= call_ids
        ids = sorted(filter(_UUID, call_ids))  # a rejected event may call itself anything
        if not ids:
            return
        for row in self._sql.fetch(rows.SELECT_POSTED_AMONG, ids, ids[0], ids[-1]):
            self._posted[row[0]] = rows.posted_call(row)
        found = self._sql.fetch("SELECT call_id FROM void_markers WHERE call_id = ANY ($1::uuid[])", ids)
        self._void.update(call_id for (call_id,) in found)

    def _lock_customers(self, account_ids: set[str]) -> None:
        if not account_ids:
            return
        accounts = [customer_account(account_id) for account_id in sorted(account_ids)]
        found = self._sql.fetch(_LOCK_CUSTOMERS, accounts)
        if len(found) < len(accounts):
            self._sql.fetch(_MAKE_CUSTOMERS, accounts)
            found = self._sql.fetch(_LOCK_CUSTOMERS, accounts)
        with_promotions: list[str] = []
        for account, balance_nano_usd, lifetime_paid_nano_usd, seq, promotional_nano_usd in found:
            account_id = account_id_of(account)
            self._customers[account_id] = Customer(account_id, balance_nano_usd, lifetime_paid_nano_usd, seq)
            if promotional_nano_usd > 0:
                with_promotions.append(account_id)
        if with_promotions:
            self._read_promotions(with_promotions)

    def _read_promotions(self, account_ids: Sequence[str]) -> None:
        for account_id, *terms in self._sql.fetch(_SELECT_PROMOTIONS, account_ids):
            self._customers[account_id].promotions.append(Promotion(*terms))
        for account_id in account_ids:
            self._customers[account_id].promotions.sort(key=lambda each: each.burns_at)


def _columns(facts: Iterable[rows.Row]) -> list[list[object]]:
    return [list(column) for column in zip(*facts, strict=True)]


def _counterpart_changes(transfers: Sequence[Transfer]) -> dict[str, int]:
    """What the sides that are no customers gain or lose, by account in order."""
    changes: dict[str, int] = {}
    for transfer in transfers:
        for account, sign in ((transfer.credit, 1), (transfer.debit, -1)):
            if not is_customer(account):
                changes[account] = changes.get(account, 0) + sign * transfer.amount_nano_usd
    return dict(sorted(changes.items()))
