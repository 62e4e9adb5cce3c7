"""What people read, as statements that both kinds of store understand; a store brings its dialect and runs them.

Owns the statements and what their rows mean; refuses to connect to anything and to write.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from services.metering.adapters import sqlite_rows as rows
from services.metering.ledger import CreditKind, Transfer, customer_account
from services.metering.ports import BalanceEvent, EntryRow, GrantRecord, Span, UsageRecord
from services.metering.pricing import PriceBook, TokenUsage, read_canonical_json
from services.metering.reports import (
    BalanceEventRow,
    CallOnRecord,
    CreditOnRecord,
    GroupedSum,
    Position,
    StatementFacts,
    UsageSelection,
)

Row = tuple[Any, ...]


class Query(NamedTuple):
    """A statement with `?` for each value."""

    statement: str
    values: tuple[Any, ...]


class Dialect(NamedTuple):
    """What the stores say differently."""

    select_usage: str  # id, then the columns of `sqlite_rows.usage_record`
    select_transfer: str  # id, then the columns of `sqlite_rows.transfer`
    text_id: str  # a column with an id, as text
    id_value: str  # a value that is compared with such a column
    day: str
    hour: str


_GROUPINGS = {
    "total": "''",
    "account": "account_id",
    "profile": "profile",
    "key": "key_id",
    "application": "application",
    "upstream": "upstream",
}
_SUMS = ", ".join(f"sum({column})" for column in rows.CHARGED_COLUMNS.split(", "))
_GRANT_COLUMNS = "g.account_id, g.idempotency_key, g.kind, g.expires_at_us, g.balance_nano_usd"
_CREDIT_KINDS = ", ".join(f"'{kind}'" for kind in CreditKind)


class SqlReports(ABC):
    """See `Reports`."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._groupings = _GROUPINGS | {"day": dialect.day, "hour": dialect.hour}

    @abstractmethod
    async def _read(self, *queries: Query) -> list[list[Row]]:
        """The rows of each query, all of one consistent view. Raises StoreUnavailableError."""

    async def sums(self, selection: UsageSelection, groupings: tuple[str, str]) -> list[GroupedSum]:
        first, second = (self._groupings[grouping] for grouping in groupings)
        where, values = _selected(selection)
        statement = (
            f"SELECT {first}, {second}, count(*), sum(charged_nano_usd), {_SUMS}"  # noqa: S608
            f" FROM usage_events WHERE {where} GROUP BY 1, 2"
        )
        (found,) = await self._read(Query(statement, values))
        return [_sum(row) for row in found]

    async def usage(
        self, selection: UsageSelection, call_id: str, before: Position | None, limit: int
    ) -> list[UsageRecord]:
        if before is not None:
            since_us, until_us = selection.span
            selection = selection._replace(span=Span(since_us, min(until_us, before[0] + 1)))
        where, values = _selected(selection)
        if call_id:
            where, values = f"{where} AND call_id = {self._dialect.id_value}", (*values, call_id)
        if before is not None:
            where, values = f"{where} AND (recorded_at_us, id) < (?, ?)", (*values, *before)
        statement = f"{self._dialect.select_usage} WHERE {where} ORDER BY recorded_at_us DESC, id DESC LIMIT ?"
        (found,) = await self._read(Query(statement, (*values, limit)))
        return [rows.usage_record(row) for row in found]

    async def call(self, call_id: str, account_id: str) -> CallOnRecord | None:
        of_call = f"call_id = {self._dialect.id_value}"
        corrections = (
            f" OR reference = (SELECT {self._dialect.text_id.format('transfer_id')} FROM transfers WHERE {of_call})"  # noqa: S608
        )
        usage, transfers, books = await self._read(
            Query(f"{self._dialect.select_usage} WHERE {of_call}", (call_id,)),
            Query(f"{self._dialect.select_transfer} WHERE {of_call}{corrections} ORDER BY id", (call_id, call_id)),
            Query(
                "SELECT canonical_json FROM price_books WHERE version ="  # noqa: S608
                f" (SELECT price_book_version FROM usage_events WHERE {of_call})",
                (call_id,),
            ),
        )
        if not usage:
            return None
        record = rows.usage_record(usage[0])
        if account_id and record.event.account_id != account_id:
            return None
        book = read_canonical_json(books[0][0])
        return CallOnRecord(record, book, tuple(rows.transfer(row) for row in transfers))

    async def credits(self, account_id: str, before: Position | None, limit: int) -> list[CreditOnRecord]:
        values: tuple[Any, ...] = (customer_account(account_id), account_id)
        page = ""
        if before is not None:
            page, values = " AND (t.posted_at_us, t.id) < (?, ?)", (*values, *before)
        columns = ", ".join(f"t.{column}" for column in rows.TRANSFER_COLUMNS.split(", "))
        text_id = self._dialect.text_id.format("t.transfer_id")
        columns = columns.replace("t.transfer_id", text_id, 1)
        statement = (
            f"SELECT t.id, {columns}, {_GRANT_COLUMNS}, coalesce(p.remaining_nano_usd, 0),"  # noqa: S608
            f" (SELECT coalesce(sum(amount_nano_usd), 0) FROM transfers r WHERE r.reference = {text_id}"
            " AND r.rule LIKE 'correct.%')"
            " FROM transfers t JOIN grants g ON g.transfer_id = t.transfer_id"
            " LEFT JOIN promotions p ON p.grant_id = t.transfer_id"
            f" WHERE t.customer = ? AND g.account_id = ? AND g.kind IN ({_CREDIT_KINDS}){page}"
            " ORDER BY t.posted_at_us DESC, t.id DESC LIMIT ?"
        )
        (found,) = await self._read(Query(statement, (*values, limit)))
        return [_credit(row) for row in found]

    async def balance_events(self, account_id: str, before: Position | None, limit: int) -> list[BalanceEventRow]:
        where, values = "account_id = ?", (account_id,)
        page, position = (" AND (occurred_at_us, id) < (?, ?)", before) if before is not None else ("", ())
        statement = (
            "SELECT id, account_id, threshold_nano_usd, balance_nano_usd, occurred_at_us FROM balance_events"  # noqa: S608
            f" WHERE {where}{page} ORDER BY occurred_at_us DESC, id DESC LIMIT ?"
        )
        (found,) = await self._read(Query(statement, (*values, *position, limit)))
        return [BalanceEventRow(row[0], BalanceEvent(*row[1:])) for row in found]

    async def statement(self, account_id: str, span: Span) -> StatementFacts:
        own = customer_account(account_id)
        since_us, until_us = span
        signed = "CASE WHEN credit = customer THEN amount_nano_usd ELSE -amount_nano_usd END"
        where, values = _selected(UsageSelection(account_id, span))
        after = f"SELECT coalesce(sum({signed}), 0) FROM transfers WHERE customer = ? AND posted_at_us >= ?"  # noqa: S608
        balance, since_then, later, entries, usage = await self._read(
            Query("SELECT balance_nano_usd FROM balances WHERE account = ?", (own,)),
            Query(after, (own, since_us)),
            Query(after, (own, until_us)),
            Query(
                "SELECT rule, CASE WHEN credit = customer THEN debit ELSE credit END, call_id IS NOT NULL, count(*),"  # noqa: S608
                f" sum({signed}) FROM transfers WHERE customer = ? AND posted_at_us >= ? AND posted_at_us < ?"
                " GROUP BY 1, 2, 3 ORDER BY 1, 2",
                (own, since_us, until_us),
            ),
            Query(
                f"SELECT profile, '', count(*), sum(charged_nano_usd) AS charged, {_SUMS} FROM usage_events"  # noqa: S608
                f" WHERE {where} GROUP BY 1 ORDER BY charged DESC, 1",
                values,
            ),
        )
        now_nano_usd = int(balance[0][0]) if balance else 0
        return StatementFacts(
            now_nano_usd - int(since_then[0][0]),
            tuple(
                (rule, side, bool(is_call), int(count), int(amount)) for rule, side, is_call, count, amount in entries
            ),
            tuple(_sum(row) for row in usage),
            now_nano_usd - int(later[0][0]),
        )

    async def exported_calls(self, account_id: str, span: Span, after: Position, limit: int) -> list[UsageRecord]:
        # The span begins where the page does: an index knows one lower bound, and it must not be the whole span's.
        where, values = _selected(UsageSelection(account_id, Span(max(span.since_us, after[0]), span.until_us)))
        statement = (
            f"{self._dialect.select_usage} WHERE {where} AND (recorded_at_us, id) > (?, ?)"
            " ORDER BY recorded_at_us, id LIMIT ?"
        )
        (found,) = await self._read(Query(statement, (*values, *after, limit)))
        return [rows.usage_record(row) for row in found]

    async def exported_entries(self, account_id: str, span: Span, after: Position, limit: int) -> list[EntryRow]:
        statement = (
            f"{self._dialect.select_transfer} WHERE {_OTHER_ENTRIES} AND (posted_at_us, id) > (?, ?)"
            " ORDER BY posted_at_us, id LIMIT ?"
        )
        since_us = max(span.since_us, after[0])
        values = (customer_account(account_id), since_us, span.until_us, *after, limit)
        (found,) = await self._read(Query(statement, values))
        return [EntryRow(row[0], rows.transfer(row)) for row in found]

    async def export_size(self, account_id: str, span: Span) -> int:
        where, values = _selected(UsageSelection(account_id, span))
        calls, entries = await self._read(
            Query(f"SELECT count(*) FROM usage_events WHERE {where}", values),  # noqa: S608
            Query(
                f"SELECT count(*) FROM transfers WHERE {_OTHER_ENTRIES}",  # noqa: S608
                (customer_account(account_id), *span),
            ),
        )
        return int(calls[0][0]) + int(entries[0][0])

    async def price_books(self) -> Mapping[str, PriceBook]:
        (found,) = await self._read(Query("SELECT version, canonical_json FROM price_books", ()))
        return {version: read_canonical_json(text) for version, text in found}


_OTHER_ENTRIES = "customer = ? AND posted_at_us >= ? AND posted_at_us < ? AND call_id IS NULL"


def _selected(selection: UsageSelection) -> tuple[str, tuple[Any, ...]]:
    """The condition that a selection means, and its values."""
    conditions = ["recorded_at_us >= ?", "recorded_at_us < ?"]
    values: list[Any] = [*selection.span]
    if selection.account_id:
        conditions.insert(0, "account_id = ?")
        values.insert(0, selection.account_id)
    for column, wanted in (
        ("key_id", selection.key_ids),
        ("application", selection.applications),
        ("profile", selection.profiles),
        ("upstream", selection.upstreams),
        ("rule", selection.rules),
    ):
        if wanted:
            conditions.append(f"{column} IN ({_marks(wanted)})")
            values += wanted
    return " AND ".join(conditions), tuple(values)


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def _sum(row: Row) -> GroupedSum:
    usage = TokenUsage(*(None if count is None else int(count) for count in row[4:]))
    return GroupedSum(row[0], row[1], int(row[2]), usage, int(row[3]))


def _credit(row: Row) -> CreditOnRecord:
    width = len(Transfer._fields)
    transfer = rows.transfer(row[: width + 1])
    account_id, key, kind, expires_at_us, balance_nano_usd, remaining, corrected = row[width + 1 :]
    grant = GrantRecord(account_id, key, kind, expires_at_us, balance_nano_usd, transfer)
    return CreditOnRecord(row[0], grant, int(remaining) if kind == CreditKind.PROMOTION else None, int(corrected))
