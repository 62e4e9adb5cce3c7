"""What one run was asked for, and where it keeps its files.

Owns the choices of the command line; refuses to act on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Options:
    """One run's choices; every section gets the same."""

    quick: bool = False
    only: frozenset[str] = frozenset()
    """Names of sections and systems; empty means all."""
    cases: frozenset[str] = frozenset()
    """Names of cases; empty means all."""
    rounds: int | None = None
    """How often each figure is taken; None leaves it to `quick`."""
    ledger_events: int | None = None
    """How many usage events the ledger is given; None leaves it to `quick`."""
    build_dir: Path = ROOT / "build"

    @property
    def peers_dir(self) -> Path:
        return self.build_dir / "bench-peers"

    @property
    def logs_dir(self) -> Path:
        return self.build_dir / "bench-logs"
