"""The Portkey gateway in two Node processes, from npm in a prefix of its own.

Owns how Portkey is installed and addressed; refuses to put a balancer before it: the load generator alternates."""

import json
import shutil
from pathlib import Path
from typing import Final

from tests.bench.options import Options
from tests.bench.processes import AbsentError, ProcessGroup, answers_ok, free_port, process_tree, wait_until
from tests.bench.systems.system import Route, run_installer

VERSION: Final = "1.15.2"
PROCESSES: Final = 2
_PACKAGE: Final = "@portkey-ai/gateway"
# The server of Portkey's own lock file. With the newest that its range admits, every stream fails with
# "TypeError: immutable" (its issue 1389).
_OVERRIDES: Final = {"@hono/node-server": "1.13.5"}


class Portkey:
    """It checks no key and counts nothing; the caller's headers say where the upstream is."""

    name = "portkey"

    def __init__(self, options: Options) -> None:
        self._prefix: Path = options.peers_dir / f"portkey-{VERSION}"
        self._logs_dir = options.logs_dir
        self._groups: dict[int, ProcessGroup] = {}
        self._upstream_port = 0

    def install(self) -> None:
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise AbsentError("node and npm are not installed")
        done = self._prefix / "installed"
        if done.exists():
            return
        self._prefix.mkdir(parents=True, exist_ok=True)
        manifest = {"private": True, "dependencies": {_PACKAGE: VERSION}, "overrides": _OVERRIDES}
        (self._prefix / "package.json").write_text(json.dumps(manifest))
        # Its install script would patch files that only its repository has.
        flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"]
        run_installer(["npm", "install", "--prefix", str(self._prefix), *flags])
        done.touch()

    def start(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        script = self._prefix / "node_modules" / _PACKAGE / "build/start-server.js"
        for number in range(PROCESSES):
            port = free_port()
            command = ["node", str(script), f"--port={port}", "--headless"]
            log = self._logs_dir / f"portkey-{number}.log"
            self._groups[port] = ProcessGroup(command, log, {"NODE_ENV": "production"})

    def wait_ready(self) -> tuple[Route, ...]:
        for port, group in self._groups.items():
            wait_until(lambda port=port: answers_ok(port, "/"), group, 60)  # type: ignore[misc]
        headers = (
            ("authorization", "Bearer sk-canned"),
            ("x-portkey-provider", "openai"),
            ("x-portkey-custom-host", f"http://127.0.0.1:{self._upstream_port}/v1"),
        )
        return (Route("Portkey", tuple(self._groups), "canned", headers),)

    def pids(self) -> frozenset[int]:
        return process_tree(group.pid for group in self._groups.values())

    def version(self) -> str:
        manifest = self._prefix / "node_modules" / _PACKAGE / "package.json"
        return f"{_PACKAGE} {json.loads(manifest.read_text())['version']}, {PROCESSES} processes"

    def stop(self) -> None:
        for group in self._groups.values():
            group.stop()
