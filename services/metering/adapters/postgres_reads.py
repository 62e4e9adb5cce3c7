"""What the ledger in PostgreSQL answers: balances, entries, the outbox.

Owns the statements that read for a caller; refuses to write and to check the ledger.
"""

from typing import Any

from services.metering.adapters import postgres_rows as rows
from services.metering.adapters.postgres_connection import BlockingConnection
from services.metering.ledger import Customer, Promotion, customer_account
from services.metering.ports import BalanceNotice, EntryRow, PageQuery

_SELECT_CUSTOMER = """
SELECT balance_nano_usd, lifetime_paid_nano_usd, seq FROM balances WHERE account = $1 AND shard = 0"""
_SELECT_PROMOTIONS = """
SELECT grant_id, expires_at_us, remaining_nano_usd FROM promotions WHERE account_id = $1 AND remaining_nano_usd > 0"""
DAY = "to_char(to_timestamp(recorded_at_us / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


def read_customer(connection: BlockingConnection, account_id: str) -> Customer:
    """A customer's projection; zero for one without entries."""
    found = connection.fetch(_SELECT_CUSTOMER, customer_account(account_id))
    if not found:
        return Customer(account_id)
    customer = Customer(account_id, *found[0])
    promotions = (Promotion(*each) for each in connection.fetch(_SELECT_PROMOTIONS, account_id))
    customer.promotions = sorted(promotions, key=lambda each: each.burns_at)
    return customer


def read_entries(connection: BlockingConnection, query: PageQuery) -> list[EntryRow]:
    """A customer's transfers, newest first."""
    where, values = _page_conditions("customer", "posted_at_us", customer_account(query.account_id), query)
    statement = f"{rows.SELECT_TRANSFER} WHERE {where} ORDER BY posted_at_us DESC, id DESC LIMIT $2"
    return [EntryRow(row[0], rows.transfer(row)) for row in connection.fetch(statement, *values)]


def _page_conditions(
    account_column: str, instant_column: str, account: str, query: PageQuery
) -> tuple[str, tuple[Any, ...]]:
    """A condition and its values, of which the second is the limit."""
    conditions = [f"{account_column} = $1"]
    values: list[Any] = [account, query.limit]
    if query.call_id:
        values.append(query.call_id)
        conditions.append(f"call_id = ${len(values)}")
    if query.before is not None:
        values += query.before
        conditions.append(f"({instant_column}, id) < (${len(values) - 1}, ${len(values)})")
    return " AND ".join(conditions), tuple(values)


def read_notices(connection: BlockingConnection, after_row_id: int, limit: int) -> list[BalanceNotice]:
    """Rows of the outbox after a row, oldest first."""
    found = connection.fetch(f"{rows.SELECT_NOTICE} WHERE id > $1 ORDER BY id LIMIT $2", after_row_id, limit)
    return [rows.notice(row) for row in found]


def is_gone_from_outbox(connection: BlockingConnection, row_id: int) -> bool:
    """Whether a row was deleted, which happens with its acknowledgement alone."""
    return not connection.fetch("SELECT 1 FROM outbox WHERE id = $1", row_id)
