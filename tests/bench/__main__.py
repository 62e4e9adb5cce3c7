"""`python -m tests.bench`: runs the sections, prints them, writes `build/bench.json`.

Owns the command line and the report's frame; refuses to measure anything itself."""

import json
import signal
import sys
import time
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from tests.bench import machine, sections
from tests.bench.cases import FULL
from tests.bench.options import Options
from tests.bench.systems import all_systems
from tests.bench.verdict import Verdict

_PLAIN_WIDTH: Final = 150
_ONLY = "Sections (link_cost, gateways, ledger) or systems (ours, litellm, portkey, nginx, envoy), separated by commas."
_CASES = "Cases (small, stream, paced, large), separated by commas."


def _known(text: str, known: set[str]) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if names - known:
        raise typer.BadParameter(f"{', '.join(sorted(names - known))}: known are {', '.join(sorted(known))}")
    return names


def _wanted(name: str, options: Options) -> bool:
    """Naming a system asks for the section that measures systems."""
    asked = options.only & set(sections.NAMES)
    systems_asked = bool(options.only - set(sections.NAMES))
    return not options.only or name in asked or (name == "gateways" and systems_asked)


def bench(
    *,
    quick: Annotated[bool, typer.Option(help="One round of the cases that the bars are about.")] = False,
    only: Annotated[str, typer.Option(help=_ONLY)] = "",
    case: Annotated[str, typer.Option(help=_CASES)] = "",
    rounds: Annotated[int | None, typer.Option(help="How often each figure is taken.")] = None,
    ledger_events: Annotated[int | None, typer.Option(help="How many usage events the ledger is given.")] = None,
    check: Annotated[bool, typer.Option(help="Exit with 1 unless every bar is met.")] = False,
) -> None:
    """Measures what the gateway costs, beside its peers and its floors."""
    # Ended from outside, a run still stops everything that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    systems = {system.name for system in all_systems(Options())}
    only_names = _known(only, systems | set(sections.NAMES))
    case_names = _known(case, {known.name for known in FULL})
    options = Options(quick=quick, only=only_names, cases=case_names, rounds=rounds, ledger_events=ledger_events)
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    began = time.monotonic()
    report: dict[str, Any] = {"machine": machine.describe(), "quick": quick, "sections": {}}
    verdicts: list[Verdict] = []
    for name in sections.NAMES:
        if not _wanted(name, options):
            continue
        section = sections.find(name)
        if section is None:
            report["sections"][name] = {"absent": "no such module yet"}
            console.print(f"[yellow]section {name}: absent")
            continue
        console.rule(f"[bold]{section.TITLE}")
        result = section.run(options)
        report["sections"][name] = result
        section.show(result, console)
        verdicts += sections.verdicts_of(section, result)
    report["seconds"] = round(time.monotonic() - began, 1)
    report["verdicts"] = [
        {"bar": verdict.bar, "measured": verdict.measured, "at_least": verdict.at_least, "met": verdict.met}
        for verdict in verdicts
    ]
    _show_verdicts(verdicts, console)
    _write(report, options, console)
    if check and not all(verdict.met for verdict in verdicts):
        raise typer.Exit(1)


def _show_verdicts(verdicts: list[Verdict], console: Console) -> None:
    if not verdicts:
        return
    table = Table(title="bars", title_justify="left", title_style="bold")
    table.add_column("bar")
    for column in ("at least", "measured", "verdict"):
        table.add_column(column, justify="right")
    words = {True: "[green]met", False: "[red]missed", None: "[yellow]not measured"}
    for verdict in verdicts:
        measured = "–" if verdict.measured is None else f"{verdict.measured:.2f} ×"
        table.add_row(verdict.bar, f"{verdict.at_least:.0f} ×", measured, words[verdict.met])
    console.print(table)


def _write(report: dict[str, Any], options: Options, console: Console) -> None:
    options.build_dir.mkdir(exist_ok=True)
    path = options.build_dir / "bench.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"{report['seconds']:.0f} s; everything is in {path.name} in {path.parent.name}/")


if __name__ == "__main__":
    typer.run(bench)
