"""What a measured system is to the bench: something that starts, is called on routes, costs, and stops.

Owns the port and its words; refuses to hold any one system."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from tests.bench.processes import AbsentError

Dialect = Literal["chat", "messages"]
INSTALL_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Route:
    """One way in: where requests go and what they must carry."""

    subject: str
    """The name of the row in the tables."""
    ports: tuple[int, ...]
    model: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    path: str = "/v1/chat/completions"
    dialect: Dialect = "chat"


class System(Protocol):
    """Each method but `stop` raises AbsentError when the system cannot take part."""

    name: str

    def install(self) -> None:
        """Makes the system available in its own cached environment; quick when it already is."""

    def start(self, upstream_port: int) -> None:
        """Starts the processes and returns at once, so that systems start side by side."""

    def wait_ready(self) -> tuple[Route, ...]:
        """Waits until it answers; returns its routes."""

    def pids(self) -> frozenset[int]:
        """Every process it consists of at this moment."""

    def version(self) -> str:
        """What was measured, for the record."""

    def stop(self) -> None:
        """Ends every process that `start` began; harmless when there is none."""


def run_installer(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        text = (error.stderr or error.stdout or "").strip()[-300:]
        raise AbsentError(f"{command[0]} failed: {text}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"{command[0]} failed: {error}") from error
