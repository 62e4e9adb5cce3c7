"""Use case: an account's costs as a file, in pieces, each with a cursor behind which an interrupted export goes on.

Owns pieces, cursors and the two formats; refuses to know protobuf and what the columns mean.
"""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from services.metering import focus, pages
from services.metering.focus import COLUMNS, FocusRow, Value
from services.metering.ledger import customer_account
from services.metering.ports import Span
from services.metering.pricing import PriceBook
from services.metering.reports import Position, Reports

PIECE = 100  # records: some 100 KB
_CALLS, _ENTRIES = 0, 1
_START: Position = (-1, -1)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class ExportRequest(NamedTuple):
    """What to export, from where."""

    account_id: str
    span: Span
    format: str  # csv or jsonl
    phase: int = _CALLS
    after: Position = _START


class Piece(NamedTuple):
    """Whole lines."""

    data: bytes
    rows: int
    records: int
    cursor: str
    is_last: bool


def resumed(account_id: str, format_name: str, span: Span, cursor: str, bound_to: str) -> ExportRequest:
    """A request, going on behind a cursor if there is one. Raises InvalidRequestError for one of another request."""
    found = pages.read_cursor(cursor, "cursor", "export", account_id, format_name, bound_to)
    if found is None:
        return ExportRequest(account_id, span, format_name)
    since_us, until_us, phase, instant_us, row_id = found
    return ExportRequest(account_id, Span(since_us, until_us), format_name, phase, (instant_us, row_id))


async def export(reports: Reports, request: ExportRequest, bound_to: str) -> AsyncIterator[Piece]:
    """The pieces of an export, at least one: calls, then the other entries."""
    write = _WRITERS[request.format]
    is_first = request.phase == _CALLS and request.after == _START
    head = write.head() if is_first else ""
    phase, after = request.phase, request.after
    books: dict[str, PriceBook] = {}
    while True:
        records, rows, after = await _records(reports, request, phase, after, books)
        is_last = phase == _ENTRIES and records < PIECE
        if phase == _CALLS and records < PIECE:
            phase, after = _ENTRIES, _START
        values = (*request.span, phase, *after)
        cursor = pages.write_cursor(values, "export", request.account_id, request.format, bound_to)
        data = head + write.rows(rows)
        head = ""
        yield Piece(data.encode(), len(rows), records, cursor, is_last)
        if is_last:
            return


async def _records(
    reports: Reports, request: ExportRequest, phase: int, after: Position, books: dict[str, PriceBook]
) -> tuple[int, list[FocusRow], Position]:
    """The next records: how many, their rows, and where the last one is."""
    rows: list[FocusRow] = []
    account_id = request.account_id
    if phase == _CALLS:
        calls = await reports.exported_calls(account_id, request.span, after, PIECE)
        if any(call.event.price_book_version not in books for call in calls):
            books.update(await reports.price_books())
        for call in calls:
            rows += focus.call_rows(call, books[call.event.price_book_version][call.event.profile])
            after = (call.recorded_at_us, call.row_id)
        return len(calls), rows, after
    entries = await reports.exported_entries(account_id, request.span, after, PIECE)
    for entry in entries:
        rows += focus.entry_rows(entry.transfer, account_id, customer_account(account_id))
        after = (entry.transfer.posted_at_us, entry.row_id)
    return len(entries), rows, after


class _Writer(NamedTuple):
    head: Callable[[], str]
    rows: Callable[[Sequence[FocusRow]], str]


def _csv_lines(lines: Iterable[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _csv_value(value: Value) -> str:
    """Numbers in full; a text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return _number(value)
    return f"'{value}" if value.startswith(_FORMULA) else value


def _json_value(value: Value) -> str:
    """A JSON literal. Amounts are numbers with all their digits: read them as decimals."""
    return json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, str) else _number(value)


def _number(value: int | Decimal) -> str:
    return str(value) if isinstance(value, int) else f"{value.normalize():f}"


def _json_line(row: FocusRow) -> str:
    return "{" + ", ".join(f'"{name}": {_json_value(row[name])}' for name in COLUMNS) + "}\n"


_WRITERS = {
    "csv": _Writer(
        lambda: _csv_lines([COLUMNS]),
        lambda rows: _csv_lines([_csv_value(row[name]) for name in COLUMNS] for row in rows),
    ),
    "jsonl": _Writer(lambda: "", lambda rows: "".join(map(_json_line, rows))),
}
