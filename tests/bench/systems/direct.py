"""The canned upstream called without anything in between.

Owns the baseline that added latency is measured from; refuses to be counted as a gateway."""

import sys

from tests.bench.options import Options
from tests.bench.processes import ProcessGroup, answers_ok, process_tree, wait_until
from tests.bench.systems.system import Route


class Direct:
    """Always present: it is also the upstream of every other system."""

    name = "direct"

    def __init__(self, options: Options) -> None:
        self._options = options
        self._group: ProcessGroup | None = None
        self._port = 0

    def install(self) -> None:
        """Part of this repository."""

    def start(self, upstream_port: int) -> None:
        self._port = upstream_port
        command = [sys.executable, "-m", "tests.bench.canned_upstream", str(upstream_port)]
        self._group = ProcessGroup(command, self._options.logs_dir / "upstream.log")

    def wait_ready(self) -> tuple[Route, ...]:
        assert self._group is not None
        wait_until(lambda: answers_ok(self._port, "/health"), self._group, 15)
        return (Route("direct", (self._port,), "canned"),)

    def pids(self) -> frozenset[int]:
        return process_tree([self._group.pid]) if self._group else frozenset()

    def version(self) -> str:
        return "canned upstream"

    def stop(self) -> None:
        if self._group:
            self._group.stop()
