"""Operating system processes of a measured system: starting, reading their cost, stopping.

Owns process groups and CPU and memory readings; refuses to know what the processes do."""

import contextlib
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

STOP_SECONDS: Final = 20.0
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


class AbsentError(Exception):
    """A system cannot take part; the text says why."""


class ProcessGroup:
    """One command in a process group of its own, its output in a log file."""

    def __init__(self, command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        # env(1) replaces itself by the command, so the process id stays the same.
        prefix = ["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exited(self) -> bool:
        return self._process.poll() is not None

    def log_tail(self) -> str:
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-4:])[-500:]

    def stop(self) -> None:
        """SIGTERM to the leader, which is to end its children; SIGKILL to whatever of its tree is still there."""
        tree = []
        for pid in process_tree([self.pid]):
            with contextlib.suppress(psutil.NoSuchProcess):
                tree.append(psutil.Process(pid))
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        _, alive = psutil.wait_procs(tree, timeout=2)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(STOP_SECONDS)


def process_tree(roots: Iterable[int]) -> frozenset[int]:
    found: set[int] = set()
    for pid in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update({pid}, (child.pid for child in psutil.Process(pid).children(recursive=True)))
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class CpuReading:
    """User and system time that each process has used so far."""

    used_ns: Mapping[int, int]

    def since(self, earlier: "CpuReading") -> int:
        return sum(used - earlier.used_ns.get(pid, 0) for pid, used in self.used_ns.items())


def read_cpu(pids: Iterable[int]) -> CpuReading:
    return CpuReading({pid: used for pid in pids if (used := _cpu_ns(pid)) is not None})


def _cpu_ns(pid: int) -> int | None:
    """The process's own CPU clock (nanoseconds, not ticks), plus its finished children."""
    try:
        # The kernel's numbering of per-process CPU clocks, as clock_getcpuclockid(3) computes it.
        own_ns = time.clock_gettime_ns((~pid << 3) | 2)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return own_ns + (int(fields[13]) + int(fields[14])) * 1_000_000_000 // _TICKS_PER_SECOND


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Resident bytes summed (pages shared by workers count in each), and the proportional sum (they count once)."""

    rss_bytes: int
    pss_bytes: int


def read_memory(pids: Iterable[int]) -> MemoryReading:
    rss, pss = 0, 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            full = psutil.Process(pid).memory_full_info()
            rss, pss = rss + full.rss, pss + full.pss
    return MemoryReading(rss, pss)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def free_base_port(offsets: Sequence[int]) -> int:
    """A port P below the ephemeral range such that every P + offset is free."""
    for base in range(21_000, 30_000, 250):
        if all(_is_free(base + offset) for offset in offsets):
            return base
    raise AbsentError("no free block of ports")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_until(ready: Callable[[], bool], group: ProcessGroup, within_seconds: float) -> None:
    deadline = time.monotonic() + within_seconds
    while not ready():
        if group.exited:
            raise AbsentError(f"it ended while starting: {group.log_tail()}")
        if time.monotonic() > deadline:
            raise AbsentError(f"not ready after {within_seconds:.0f} s: {group.log_tail()}")
        time.sleep(0.1)


def answers_ok(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
