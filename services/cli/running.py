"""Which gateway runs on a data directory: a lock that dies with its holder, and a note for whoever asks.

Owns `run/manager.lock` and `run/manager.json`; starts and stops nothing.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from services.cli.deployment import Deployment

_LOCK_TRIES = 10


class StartError(Exception):
    """The deployment cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """A running manager and where its gateway answers. `is_ready`: every process has answered once."""

    pid: int
    base_url: str
    host: str
    grpc_base_port: int
    is_ready: bool


class Claim:
    """The right to run the gateway of a data directory."""

    def __init__(self, run_dir: Path) -> None:
        self._note = run_dir / "manager.json"

    def announce(self, deployment: Deployment, *, is_ready: bool) -> None:
        """Writes the note that `find` reads."""
        note = Running(os.getpid(), deployment.base_url, deployment.host, deployment.grpc_base_port, is_ready)
        temporary = self._note.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(note)))
        temporary.replace(self._note)

    def withdraw(self) -> None:
        """Removes the note."""
        self._note.unlink(missing_ok=True)


@contextlib.contextmanager
def claim(data_dir: Path) -> Iterator[Claim]:
    """Holds a data directory for one manager. Raises StartError if another one has it."""
    run_dir = data_dir / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "manager.lock").open("a") as lock:
        if not _lock(lock.fileno()):
            raise StartError(f"a gateway already runs on {data_dir}; stop it with `mws down`")
        claimed = Claim(run_dir)
        try:
            yield claimed
        finally:
            claimed.withdraw()


def _lock(file: int) -> bool:
    """Several tries, since `find` holds the lock for a moment too."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def find(data_dir: Path) -> Running | None:
    """The gateway that runs on a data directory; None if none does. A note that a killed manager left is no gateway."""
    run_dir = data_dir / "run"
    try:
        with (run_dir / "manager.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        pass
    except OSError:
        return None
    try:
        return Running(**json.loads((run_dir / "manager.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None  # it has just begun, or is just ending
