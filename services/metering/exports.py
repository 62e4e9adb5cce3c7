"""Use case: an account's costs as a file, in pieces, each with a cursor behind which an interrupted export goes on.

Owns pieces, cursors and the two formats; refuses to know protobuf and what the columns mean.
"""

import asyncio
import csv
import functools
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from services.metering import focus, pages
from services.metering.focus import COLUMNS, FocusRow, Number, Value
from services.metering.ledger import customer_account
from services.metering.ports import EntryRow, Span, UsageRecord
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
        records, render, after = await _records(reports, request, phase, after, books)
        is_last = phase == _ENTRIES and records < PIECE
        if phase == _CALLS and records < PIECE:
            phase, after = _ENTRIES, _START
        values = (*request.span, phase, *after)
        cursor = pages.write_cursor(values, "export", request.account_id, request.format, bound_to)
        # Beside the loop: rendering costs milliseconds, and calls are recorded on the loop meanwhile.
        rows, text = await asyncio.to_thread(_rendered, render, write)
        data, head = head + text, ""
        yield Piece(data.encode(), rows, records, cursor, is_last)
        if is_last:
            return


def _rendered(rows_of: Callable[[], list[FocusRow]], write: "_Writer") -> tuple[int, str]:
    rows = rows_of()
    return len(rows), write.rows(rows)


async def _records(
    reports: Reports, request: ExportRequest, phase: int, after: Position, books: dict[str, PriceBook]
) -> tuple[int, Callable[[], list[FocusRow]], Position]:
    """The next records: how many, what makes their rows, and where the last one is."""
    account_id = request.account_id
    if phase == _CALLS:
        calls = await reports.exported_calls(account_id, request.span, after, PIECE)
        if any(call.event.price_book_version not in books for call in calls):
            books.update(await reports.price_books())
        if calls:
            after = (calls[-1].recorded_at_us, calls[-1].row_id)
        return len(calls), functools.partial(_call_rows, calls, books), after
    entries = await reports.exported_entries(account_id, request.span, after, PIECE)
    if entries:
        after = (entries[-1].transfer.posted_at_us, entries[-1].row_id)
    return len(entries), functools.partial(_entry_rows, entries, account_id), after


def _call_rows(calls: Sequence[UsageRecord], books: Mapping[str, PriceBook]) -> list[FocusRow]:
    return [
        row for call in calls for row in focus.call_rows(call, books[call.event.price_book_version][call.event.profile])
    ]


def _entry_rows(entries: Sequence[EntryRow], account_id: str) -> list[FocusRow]:
    own = customer_account(account_id)
    return [row for entry in entries for row in focus.entry_rows(entry.transfer, account_id, own)]


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
        return str(value)
    return f"'{value}" if value.startswith(_FORMULA) and not isinstance(value, Number) else value


def _json_value(value: Value) -> str:
    """A JSON literal. Amounts are numbers with all their digits: read them as decimals."""
    if value is None:
        return "null"
    return str(value) if isinstance(value, (int, Number)) else _json_text(value)


@functools.lru_cache(maxsize=4_096)
def _json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json_line(row: FocusRow) -> str:
    return "{" + ", ".join(f'"{name}": {_json_value(row[name])}' for name in COLUMNS) + "}\n"


_WRITERS = {
    "csv": _Writer(
        lambda: _csv_lines([COLUMNS]),
        lambda rows: _csv_lines([_csv_value(row[name]) for name in COLUMNS] for row in rows),
    ),
    "jsonl": _Writer(lambda: "", lambda rows: "".join(map(_json_line, rows))),
}
