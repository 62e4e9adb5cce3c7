"""What the embedded ledger answers: balances, entries, the outbox.

Owns the statements that read for a caller; refuses to write and to check the ledger.
"""

import sqlite3

from services.metering.adapters import sqlite_rows as rows
from services.metering.ledger import Customer, Promotion, customer_account
from services.metering.ports import BalanceNotice, EntryRow, PageQuery

_SELECT_PROMOTIONS = """
SELECT grant_id, expires_at_us, remaining_nano_usd FROM promotions WHERE account_id = ? AND remaining_nano_usd > 0"""
_SELECT_NOTICES = """
SELECT id, account_id, seq, balance_nano_usd, lifetime_paid_nano_usd, closed_call_ids FROM outbox
WHERE id > ? ORDER BY id LIMIT ?"""


def read_customer(connection: sqlite3.Connection, account_id: str) -> Customer:
    """A customer's projection; zero for one without entries."""
    row = connection.execute(
        "SELECT balance_nano_usd, lifetime_paid_nano_usd, seq, promotional_nano_usd FROM balances WHERE account = ?",
        (customer_account(account_id),),
    ).fetchone()
    if row is None:
        return Customer(account_id)
    customer = Customer(account_id, row[0], row[1], row[2])
    if row[3] > 0:
        found = connection.execute(_SELECT_PROMOTIONS, (account_id,))
        customer.promotions = sorted((Promotion(*each) for each in found), key=lambda each: each.burns_at)
    return customer


def read_entries(connection: sqlite3.Connection, query: PageQuery) -> list[EntryRow]:
    """A customer's transfers, newest first."""
    where, values = _page_conditions("customer", "posted_at_us", customer_account(query.account_id), query)
    statement = f"{rows.SELECT_TRANSFER} WHERE {where} ORDER BY posted_at_us DESC, id DESC LIMIT ?"
    return [EntryRow(row[0], rows.transfer(row)) for row in connection.execute(statement, (*values, query.limit))]


def _page_conditions(
    account_column: str, instant_column: str, account: str, query: PageQuery
) -> tuple[str, tuple[str | int, ...]]:
    conditions, values = [f"{account_column} = ?"], [account]
    if query.call_id:
        conditions.append("call_id = ?")
        values.append(query.call_id)
    if query.before is None:
        return " AND ".join(conditions), tuple(values)
    conditions.append(f"({instant_column}, id) < (?, ?)")
    return " AND ".join(conditions), (*values, *query.before)


def read_notices(connection: sqlite3.Connection, after_row_id: int, limit: int) -> list[BalanceNotice]:
    """Rows of the outbox after a row, oldest first."""
    return [notice_of(row) for row in connection.execute(_SELECT_NOTICES, (after_row_id, limit))]


def notice_of(row: rows.Row) -> BalanceNotice:
    """A row of the outbox."""
    return BalanceNotice._make((*row[:5], tuple(row[5].split(",")) if row[5] else ()))
