"""The gateways section as tables for people.

Owns columns and rounding; refuses to compute anything but differences and ratios of what was measured."""

from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.cases import FULL, Case

_OURS: Final = "ours, chat"
_BASELINE: Final = "direct"
_COLUMNS: Final = ("CPU µs/request", "spread", "× ours", "requests/s", "added p50 ms", "added p99 ms")
_FIRST_BYTE: Final = "first SSE byte ms"


def show(result: dict[str, Any], console: Console) -> None:
    for case in FULL:
        cells = [cell for cell in result["cells"] if cell["case"] == case.name]
        if cells:
            console.print(_case_table(case, cells))
    console.print(_idle_table(result))
    for name, reason in result["absent"].items():
        console.print(f"[yellow]absent: {name}: {escape(reason)}")
    if result["ledger_check"]:
        console.print(f"our ledger after the run: {result['ledger_check']}")


def _case_table(case: Case, cells: list[dict[str, Any]]) -> Table:
    table = Table(title=case.title, title_justify="left", title_style="bold")
    table.add_column("in flight", justify="right")
    table.add_column("system")
    for column in (*_COLUMNS, *((_FIRST_BYTE,) if case.stream else ()), "RSS MB", "errors"):
        table.add_column(column, justify="right")
    for in_flight in case.in_flight:
        group = [cell for cell in cells if cell["in_flight"] == in_flight]
        by_subject = {cell["subject"]: cell for cell in group}
        for cell in group:
            row = _row(cell, by_subject.get(_OURS), by_subject.get(_BASELINE), case)
            table.add_row(str(in_flight), *row, style="bold" if cell["subject"].startswith("ours") else None)
        table.add_section()
    _add_notes(table, cells)
    return table


def _row(cell: dict[str, Any], ours: dict[str, Any] | None, baseline: dict[str, Any] | None, case: Case) -> list[str]:
    return [
        cell["subject"],
        _number(cell["cpu_us_per_request"]),
        f"{_number(cell['cpu_us_lowest'])}–{_number(cell['cpu_us_highest'])}",
        _ratio(cell, ours),
        _number(cell["requests_per_second"]),
        _added(cell, baseline, "p50_ms"),
        _added(cell, baseline, "p99_ms"),
        *((_number(cell["first_byte_p50_ms"]),) if case.stream else ()),
        _number(cell["rss_mb"]),
        str(cell["errors"]) if not cell["errors"] else f"[red]{cell['errors']}",
    ]


def _add_notes(table: Table, cells: list[dict[str, Any]]) -> None:
    notes = []
    for cell in cells:
        where = f"{cell['subject']}, {cell['in_flight']} in flight"
        if cell["error_samples"]:
            notes.append(f"{where}: {escape(cell['error_samples'][0])}")
        if cell["upstream_calls"] != cell["requests"] + cell["errors"]:
            asked = cell["requests"] + cell["errors"]
            notes.append(f"{where}: {cell['upstream_calls']} upstream calls for {asked} requests")
    table.caption = "\n".join(notes) or None


def _idle_table(result: dict[str, Any]) -> Table:
    table = Table(title="idle", title_justify="left", title_style="bold")
    table.add_column("system")
    for column in ("processes", "CPU ms/s", "RSS MB", "PSS MB"):
        table.add_column(column, justify="right")
    table.add_column("version")
    for name, idle in result["idle"].items():
        figures = (idle["processes"], idle["cpu_ms_per_second"], idle["rss_mb"], idle["pss_mb"])
        table.add_row(name, *(_number(figure) for figure in figures), result["versions"].get(name, ""))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(cell: dict[str, Any], ours: dict[str, Any] | None) -> str:
    if ours is None or not ours["cpu_us_per_request"] or not cell["cpu_us_per_request"]:
        return "–"
    return f"{cell['cpu_us_per_request'] / ours['cpu_us_per_request']:.2f}"


def _added(cell: dict[str, Any], baseline: dict[str, Any] | None, name: str) -> str:
    if baseline is None or cell is baseline or cell[name] is None or baseline[name] is None:
        return "–"
    return f"{cell[name] - baseline[name]:+.2f}"
