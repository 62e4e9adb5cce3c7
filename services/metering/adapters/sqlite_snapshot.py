"""A consistent view of the whole embedded ledger, for checking it.

Owns the statements that audit; refuses to judge what they find.
"""

import sqlite3
from collections.abc import Iterator, Mapping

from services.metering.adapters import sqlite_rows as rows
from services.metering.ledger import GRANT_RULES, PromotionTerms, Transfer, account_id_of, customer_account
from services.metering.ports import AuditedCall, CustomerRow
from services.metering.pricing import PriceBook, read_canonical_json

_DIFFERING = """
SELECT account, sum(moved), sum(stored) FROM (
    SELECT credit AS account, amount_nano_usd AS moved, 0 AS stored FROM transfers {where}
    UNION ALL SELECT debit, -amount_nano_usd, 0 FROM transfers {where}
    UNION ALL SELECT account, 0, balance_nano_usd FROM balances {own}
) {own} GROUP BY account HAVING sum(moved) <> sum(stored) ORDER BY account"""
_CUSTOMERS = """
SELECT account, balance_nano_usd, lifetime_paid_nano_usd, promotional_nano_usd, balances.seq, coalesce(heard.seq, 0)
FROM balances LEFT JOIN (
    SELECT 'customer:' || account_id AS account, max(seq) AS seq FROM (
        SELECT account_id, seq FROM outbox UNION ALL SELECT account_id, seq FROM acknowledged
    ) GROUP BY account_id
) AS heard USING (account) WHERE account GLOB 'customer:*'"""
_FALSE_NOTICES = """
SELECT account_id, b.balance_nano_usd, b.lifetime_paid_nano_usd, o.balance_nano_usd, o.lifetime_paid_nano_usd
FROM outbox o JOIN balances b ON b.account = 'customer:' || account_id AND b.seq = o.seq
WHERE ? IN ('', account_id)
AND (b.balance_nano_usd <> o.balance_nano_usd OR b.lifetime_paid_nano_usd <> o.lifetime_paid_nano_usd)"""
_DOUBLE = """
SELECT call_id, count(*) AS times FROM transfers {where} GROUP BY call_id HAVING times > 1
UNION SELECT call_id, count(*) AS times FROM usage_events {usage_where} GROUP BY call_id HAVING times > 1"""


class SqliteSnapshot:
    """See `LedgerSnapshot`. Lives inside one reading transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def price_books(self) -> Mapping[str, PriceBook]:
        found = self._sql.execute("SELECT version, canonical_json FROM price_books")
        return {version: read_canonical_json(text) for version, text in found}

    def balance_total(self) -> int:
        (total,) = self._sql.execute("SELECT coalesce(sum(balance_nano_usd), 0) FROM balances").fetchone()
        return int(total)

    def differing_balances(self, account_id: str) -> Iterator[tuple[str, int, int]]:
        where, values = _of_customer(account_id)
        own, ledger_account = ("WHERE account = ?", (customer_account(account_id),)) if account_id else ("", ())
        statement = _DIFFERING.format(where=where, own=own)
        return iter(self._sql.execute(statement, (*values * 2, *ledger_account, *ledger_account)))

    def customers(self, account_id: str) -> Iterator[CustomerRow]:
        extra, values = (" AND account = ?", (customer_account(account_id),)) if account_id else ("", ())
        for account, *facts in self._sql.execute(_CUSTOMERS + extra, values):
            yield CustomerRow(account_id_of(account), *facts)

    def transfers(self, account_id: str) -> Iterator[Transfer]:
        found = self._sql.execute(
            rows.SELECT_TRANSFER + " WHERE customer = ? ORDER BY id", (customer_account(account_id),)
        )
        return (rows.transfer(row) for row in found)

    def transfer_count(self, account_id: str) -> int:
        where, values = _of_customer(account_id)
        (count,) = self._sql.execute(f"SELECT count(*) FROM transfers {where}", values).fetchone()  # noqa: S608
        return int(count)

    def impossible_transfers(self, account_id: str) -> Iterator[Transfer]:
        where, values = _of_customer(account_id, "(amount_nano_usd <= 0 OR debit = credit)")
        return (rows.transfer(row) for row in self._sql.execute(f"{rows.SELECT_TRANSFER} {where}", values))

    def promotion_terms(self, account_id: str) -> list[PromotionTerms]:
        found = self._sql.execute(
            "SELECT transfer_id, expires_at_us FROM grants WHERE account_id = ? AND kind = 'promotion'", (account_id,)
        )
        return [PromotionTerms(*row) for row in found]

    def remaining_promotions(self, account_id: str) -> dict[str, int]:
        found = self._sql.execute(
            "SELECT grant_id, remaining_nano_usd FROM promotions WHERE account_id = ? AND remaining_nano_usd <> 0",
            (account_id,),
        )
        return dict(found)

    def calls(self, account_id: str) -> Iterator[AuditedCall]:
        where, values = ("WHERE account_id = ?", (account_id,)) if account_id else ("", ())
        for row in self._sql.execute(f"{rows.SELECT_USAGE} {where}", values):
            record = rows.usage_record(row)
            call_id = (record.event.call_id,)
            transfer = self._sql.execute(rows.SELECT_TRANSFER + " WHERE call_id = ?", call_id).fetchone()
            marker = self._sql.execute("SELECT 1 FROM void_markers WHERE call_id = ?", call_id).fetchone()
            yield AuditedCall(record, None if transfer is None else rows.transfer(transfer), marker is not None)

    def postings_without_usage(self, account_id: str) -> Iterator[Transfer]:
        condition = "call_id IS NOT NULL AND call_id NOT IN (SELECT call_id FROM usage_events)"
        where, values = _of_customer(account_id, condition)
        return (rows.transfer(row) for row in self._sql.execute(f"{rows.SELECT_TRANSFER} {where}", values))

    def double_postings(self, account_id: str) -> Iterator[tuple[str, int]]:
        where, values = _of_customer(account_id, "call_id IS NOT NULL")
        usage_where, usage_values = ("WHERE account_id = ?", (account_id,)) if account_id else ("", ())
        statement = _DOUBLE.format(where=where, usage_where=usage_where)
        return iter(self._sql.execute(statement, (*values, *usage_values)))

    def unexplained_grants(self, account_id: str) -> Iterator[str]:
        rules = ", ".join(f"'{rule}'" for rule in GRANT_RULES)
        where, values = _of_customer(
            account_id,
            f"rule IN ({rules}) AND transfer_id NOT IN (SELECT transfer_id FROM grants)",  # noqa: S608
        )
        for (transfer_id,) in self._sql.execute(f"SELECT transfer_id FROM transfers {where}", values):  # noqa: S608
            yield transfer_id
        extra, own = (" AND account_id = ?", (account_id,)) if account_id else ("", ())
        without = "SELECT transfer_id FROM grants WHERE transfer_id NOT IN (SELECT transfer_id FROM transfers)"
        for (transfer_id,) in self._sql.execute(without + extra, own):
            yield transfer_id

    def false_notices(self, account_id: str) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
        for about, balance, paid, *found in self._sql.execute(_FALSE_NOTICES, (account_id,)):
            yield about, (balance, paid), (found[0], found[1])


def _of_customer(account_id: str, condition: str = "") -> tuple[str, tuple[str, ...]]:
    """A WHERE clause for the transfers of one customer, or of all."""
    conditions = [condition] if condition else []
    if account_id:
        conditions.append("customer = ?")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    return where, (customer_account(account_id),) if account_id else ()
