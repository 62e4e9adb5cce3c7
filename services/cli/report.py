"""What the command line shows: tables for people, one JSON document for scripts.

Owns the form; refuses to fetch anything.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.runtime.errors import FieldViolation, GatewayError, reason_name

PIPED_WIDTH = 200


class Report:
    """Prints results to stdout and failures to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = Console()
        if not self._out.is_terminal:
            self._out = Console(width=PIPED_WIDTH)  # nothing is gained by folding columns for a file or a pager
        self._err = Console(stderr=True)

    @property
    def is_json(self) -> bool:
        """Whether a script reads it."""
        return self._as_json

    def record(self, title: str, fields: Mapping[str, Any], *, for_people: Mapping[str, Any] | None = None) -> None:
        """One thing with named fields. `for_people` replaces the fields in the readable form."""
        if self._as_json:
            print(json.dumps(fields))
            return
        self._out.print(f"[bold]{title}[/bold]")
        shown = for_people if for_people is not None else fields
        width = max((len(name) for name in shown), default=0)
        for name, value in shown.items():
            self._out.print(
                f"  {name.replace('_', ' '):<{width}}  {escape(str(value))}", highlight=False, soft_wrap=True
            )

    def rows(self, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], **also: Any) -> None:
        """A list of like things; JSON has every field and `also`, the table the named columns."""
        if self._as_json:
            print(json.dumps({title: list(rows), **also}))
            return
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(row.get(column, ""))) for column in columns))
        self._out.print(table)

    def plain(self, text: str) -> None:
        """Text to copy from; silent for scripts."""
        if not self._as_json:
            self._out.print(text, highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A remark on progress; silent for scripts."""
        if not self._as_json:
            self._err.print(text, highlight=False, markup=False)

    def fail(self, error: GatewayError | ValueError) -> None:
        """A failure: one line for people, one JSON object on stderr for scripts."""
        if not isinstance(error, GatewayError):
            reason, message = "USAGE", str(error)
            violations: Sequence[FieldViolation] = ()
        else:
            reason, message, violations = reason_name(error), error.message, error.violations
        if self._as_json:
            body = {"reason": reason, "message": message, "violations": {v.field: v.description for v in violations}}
            print(json.dumps({"error": body}), file=sys.stderr)
            return
        self._err.print(f"[red]error[/red] {escape(message)} ({reason})", highlight=False, soft_wrap=True)
        for violation in violations:
            self._err.print(
                f"  {escape(violation.field)}: {escape(violation.description)}", highlight=False, soft_wrap=True
            )
