"""A consistent view of the whole ledger in PostgreSQL, for checking it; read in parts, so of any size.

Owns the statements that audit; refuses to judge what they find.
"""

from collections.abc import Iterator, Mapping

from services.metering.adapters import postgres_rows as rows
from services.metering.adapters.postgres_connection import BlockingConnection
from services.metering.ledger import GRANT_RULES, PromotionTerms, Transfer, account_id_of, customer_account
from services.metering.ports import AuditedCall, CustomerRow
from services.metering.pricing import PriceBook, read_canonical_json

# Empty text stands for all accounts in every statement.
_DIFFERING = """
SELECT account, sum(moved), sum(stored) FROM (
    SELECT credit AS account, amount_nano_usd AS moved, 0 AS stored FROM transfers WHERE $1 IN ('', customer)
    UNION ALL SELECT debit, -amount_nano_usd, 0 FROM transfers WHERE $1 IN ('', customer)
    UNION ALL SELECT account, 0, balance_nano_usd FROM balances
) AS sides WHERE $1 IN ('', account) GROUP BY account HAVING sum(moved) <> sum(stored) ORDER BY account"""
_CUSTOMERS = """
SELECT account, balance_nano_usd, lifetime_paid_nano_usd, promotional_nano_usd, balances.seq, coalesce(heard.seq, 0)
FROM balances LEFT JOIN (
    SELECT 'customer:' || account_id AS account, max(seq) AS seq FROM (
        SELECT account_id, seq FROM outbox UNION ALL SELECT account_id, seq FROM acknowledged
    ) AS both_of GROUP BY account_id
) AS heard USING (account) WHERE account LIKE 'customer:%' AND $1 IN ('', account) ORDER BY account"""
_FALSE_NOTICES = """
SELECT account_id, b.balance_nano_usd, b.lifetime_paid_nano_usd, o.balance_nano_usd, o.lifetime_paid_nano_usd
FROM outbox o JOIN balances b ON b.account = 'customer:' || account_id AND b.shard = 0 AND b.seq = o.seq
WHERE $1 IN ('', account_id)
AND (b.balance_nano_usd, b.lifetime_paid_nano_usd) <> (o.balance_nano_usd, o.lifetime_paid_nano_usd)"""
_USAGE_COLUMNS = ", ".join(f"u.{column}" for column in rows.USAGE_COLUMNS)
_TRANSFER_COLUMNS = ", ".join(f"t.{column}" for column in rows.TRANSFER_COLUMNS)
_CALLS = f"""
SELECT u.id, {_USAGE_COLUMNS}, t.id, {_TRANSFER_COLUMNS}, v.call_id IS NOT NULL
FROM usage_events u LEFT JOIN transfers t ON t.call_id = u.call_id LEFT JOIN void_markers v ON v.call_id = u.call_id
WHERE $1 IN ('', u.account_id)"""  # noqa: S608
_USAGE_END = 1 + len(rows.USAGE_COLUMNS)
_TRANSFER_END = _USAGE_END + 1 + len(rows.TRANSFER_COLUMNS)
_WITHOUT_USAGE = f"""
{rows.SELECT_TRANSFER} AS t WHERE call_id IS NOT NULL AND $1 IN ('', customer)
AND NOT EXISTS (SELECT FROM usage_events u WHERE u.call_id = t.call_id)"""
_DOUBLE = """
SELECT call_id, count(*) FROM transfers WHERE call_id IS NOT NULL AND $1 IN ('', customer)
GROUP BY call_id HAVING count(*) > 1
UNION SELECT call_id, count(*) FROM usage_events WHERE $2 IN ('', account_id) GROUP BY call_id HAVING count(*) > 1"""
_UNEXPLAINED = """
SELECT transfer_id FROM transfers t WHERE rule = ANY ($3::text[]) AND $1 IN ('', customer)
AND NOT EXISTS (SELECT FROM grants g WHERE g.transfer_id = t.transfer_id)
UNION ALL SELECT transfer_id FROM grants g WHERE $2 IN ('', account_id)
AND NOT EXISTS (SELECT FROM transfers t WHERE t.transfer_id = g.transfer_id)"""


class PostgresSnapshot:
    """See `LedgerSnapshot`. Lives inside one repeatable-read transaction."""

    def __init__(self, connection: BlockingConnection) -> None:
        self._sql = connection

    def price_books(self) -> Mapping[str, PriceBook]:
        found = self._sql.fetch("SELECT version, canonical_json FROM price_books")
        return {version: read_canonical_json(text) for version, text in found}

    def balance_total(self) -> int:
        ((total,),) = self._sql.fetch("SELECT coalesce(sum(balance_nano_usd), 0) FROM balances")
        return int(total)

    def differing_balances(self, account_id: str) -> Iterator[tuple[str, int, int]]:
        yield from self._sql.stream(_DIFFERING, _or_all(account_id))

    def customers(self, account_id: str) -> Iterator[CustomerRow]:
        for account, *facts in self._sql.stream(_CUSTOMERS, _or_all(account_id)):
            yield CustomerRow(account_id_of(account), *facts)

    def transfers(self, account_id: str) -> Iterator[Transfer]:
        statement = f"{rows.SELECT_TRANSFER} WHERE customer = $1 ORDER BY id"
        return (rows.transfer(row) for row in self._sql.stream(statement, customer_account(account_id)))

    def transfer_count(self, account_id: str) -> int:
        statement = "SELECT count(*) FROM transfers WHERE $1 IN ('', customer)"
        ((count,),) = self._sql.fetch(statement, _or_all(account_id))
        return int(count)

    def impossible_transfers(self, account_id: str) -> Iterator[Transfer]:
        statement = f"{rows.SELECT_TRANSFER} WHERE (amount_nano_usd <= 0 OR debit = credit) AND $1 IN ('', customer)"
        return (rows.transfer(row) for row in self._sql.stream(statement, _or_all(account_id)))

    def promotion_terms(self, account_id: str) -> list[PromotionTerms]:
        found = self._sql.fetch(
            "SELECT transfer_id, expires_at_us FROM grants WHERE account_id = $1 AND kind = 'promotion'", account_id
        )
        return [PromotionTerms(*row) for row in found]

    def remaining_promotions(self, account_id: str) -> dict[str, int]:
        return dict(
            self._sql.fetch(
                "SELECT grant_id, remaining_nano_usd FROM promotions WHERE account_id = $1 AND remaining_nano_usd <> 0",
                account_id,
            )
        )

    def calls(self, account_id: str) -> Iterator[AuditedCall]:
        for row in self._sql.stream(_CALLS, account_id):
            found = row[_USAGE_END:_TRANSFER_END]
            transfer = None if found[0] is None else rows.transfer(found)
            yield AuditedCall(rows.usage_record(row[:_USAGE_END]), transfer, row[_TRANSFER_END])

    def postings_without_usage(self, account_id: str) -> Iterator[Transfer]:
        return (rows.transfer(row) for row in self._sql.stream(_WITHOUT_USAGE, _or_all(account_id)))

    def double_postings(self, account_id: str) -> Iterator[tuple[str, int]]:
        yield from self._sql.stream(_DOUBLE, _or_all(account_id), account_id)

    def unexplained_grants(self, account_id: str) -> Iterator[str]:
        found = self._sql.stream(_UNEXPLAINED, _or_all(account_id), account_id, list(GRANT_RULES))
        return (transfer_id for (transfer_id,) in found)

    def false_notices(self, account_id: str) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
        for about, balance, paid, *found in self._sql.stream(_FALSE_NOTICES, account_id):
            yield about, (balance, paid), (found[0], found[1])


def _or_all(account_id: str) -> str:
    """The ledger account of one customer; empty stays empty."""
    return customer_account(account_id) if account_id else ""
