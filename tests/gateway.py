"""A whole gateway for tests: the four real processes, started by the real command, on free ports.

Owns starting, stopping and the administrator's commands; refuses to know any dialect.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner, Result

from services.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Account:
    """An account with its first key."""

    account_id: str
    api_key: str


class Gateway:
    """Runs `mws up`; use as a context manager."""

    def __init__(self, data_dir: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.host = "127.0.0.1"
        self.port, self.grpc_base_port = free_port_block()
        self._options = options
        # A busy disk of the machine that tests is no fault of the store; suites about slow stores set what they mean.
        patient = {"MWS_AUTH_STORE_TIMEOUT_S": "1.8", "MWS_METERING_STORE_TIMEOUT_S": "1.2"}
        self._environment = {**patient, **(environment or {})}
        self.start_s = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.output: list[str] = []

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def grpc_target(self, service: str) -> str:
        return f"{self.host}:{self.grpc_base_port + ('auth', 'inference', 'metering').index(service)}"

    def __enter__(self) -> "Gateway":
        command = [sys.executable, "-m", "services.cli.main", "up", "--host", self.host, "--port", str(self.port)]
        command += ["--grpc-base-port", str(self.grpc_base_port), "--data-dir", str(self.data_dir), *self._options]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self._environment},  # noqa: TID251 - the child needs PATH
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        began = time.monotonic()
        deadline = began + START_TIMEOUT_S
        while not ready.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._reader.join()
                raise AssertionError("the gateway did not start:\n" + "".join(self.output))
        self.start_s = time.monotonic() - began
        return self

    def _read(self, ready: threading.Event) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.output.append(line)
                if line.strip() == f"ready {self.base_url}":
                    ready.set()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, then wait for the drain; returns the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(timeout=60)
        if self._reader is not None:
            self._reader.join()
            self._reader = None
        return status

    def mws(self, *arguments: str, check: bool = True) -> Any:
        """Runs an administrator's command and returns its JSON."""
        done = self.run(*arguments, "--json")
        if check and done.exit_code != 0:
            raise AssertionError(f"mws {' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout or "null")

    def run(self, *arguments: str) -> Result:
        """Runs an administrator's command. In this process: an interpreter per command would cost minutes in all."""
        where = ["--grpc-base-port", str(self.grpc_base_port), "--data-dir", str(self.data_dir)]
        return CliRunner().invoke(app, [*arguments, *where])

    def account(self, name: str = "test", *, credit_usd: str | None = "100", **ceilings: int) -> Account:
        """A new account; `rpm`, `tpm` and `concurrency` override the tier's ceilings."""
        options = ["--credit-usd", credit_usd] if credit_usd else []
        for option, value in {"rpm": 100_000, "tpm": 100_000_000, "concurrency": 10_000, **ceilings}.items():
            options += [f"--{option}", str(value)]
        made = self.mws("account", "create", "--name", name, *options)
        return Account(made["account_id"], made["api_key"])

    def pid(self, service: str) -> int:
        """Process id of a service's first replica."""
        return int((self.data_dir / "run" / f"{service}-0.pid").read_text())

    def token(self, caller_class: str) -> str:
        """A service token of this deployment."""
        return (self.data_dir / "secrets" / f"{caller_class}.token").read_text().strip()

    def memory_bytes(self) -> int:
        """Resident memory of the four processes, summed."""
        return sum(psutil.Process(self.pid(s)).memory_info().rss for s in ("edge", "auth", "inference", "metering"))

    def logs(self) -> str:
        """Everything that the processes have logged."""
        return "".join(path.read_text(errors="replace") for path in sorted((self.data_dir / "log").glob("*.log")))


def free_port_block() -> tuple[int, int]:
    """An HTTP port and a gRPC base port whose offsets (+1, +2, +100…, +200…) are free as well.

    Tests that run side by side take them from ranges of their own: what is free now is bound only moments later.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4  # noqa: TID251 - the plugin's
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        base = 20_000 + worker * 2_250 + port % 2_000
        if all(_is_free(p) for p in (port, *(base + o + k for o in (0, 100, 200) for k in range(3)))):
            return port, base
    raise AssertionError("no free block of ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
