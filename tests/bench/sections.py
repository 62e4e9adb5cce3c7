"""The sections of a run.

Owns the registry; refuses to know what a section measures. A section is a module in this package with `TITLE`, `run`
and `show`, and `verdicts` if it has bars; adding one is writing the module and naming it here."""

import importlib
import importlib.util
from typing import Any, Final, Protocol, cast

from rich.console import Console

from tests.bench.options import Options
from tests.bench.verdict import Verdict

NAMES: Final = ("link_cost", "gateways", "ledger")


class Section(Protocol):
    """What such a module offers."""

    TITLE: str

    def run(self, options: Options) -> dict[str, Any]:
        """Measures; the result goes to `build/bench.json` as it is, so it holds JSON values only."""

    def show(self, result: dict[str, Any], console: Console) -> None:
        """Prints the result for people."""


def find(name: str) -> Section | None:
    path = f"{__package__}.{name}"
    return cast("Section", importlib.import_module(path)) if importlib.util.find_spec(path) else None


def verdicts_of(section: Section, result: dict[str, Any]) -> list[Verdict]:
    found: list[Verdict] = section.verdicts(result) if hasattr(section, "verdicts") else []
    return found
