"""The MWS gateway as `mws up` starts it: authentication, limits, holds and the durable ledger on.

Owns how our own system is started for a measurement; refuses to switch any of its features off."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.bench.options import ROOT, Options
from tests.bench.processes import AbsentError, ProcessGroup, free_base_port, free_port, process_tree, wait_until
from tests.bench.systems.system import Route

_COMMAND: Final = ROOT / ".venv/bin/mws"
_GRPC_OFFSETS: Final = (0, 1, 2, 100, 101, 102)
_MODEL: Final = "dragon"
# Ceilings so high that no request of a run is refused; every one of them is still checked.
_CEILINGS: Final = ("--credit-usd", "100000", "--rpm", "100000000", "--tpm", "100000000", "--concurrency", "100000")


class Ours:
    """The data folder is fresh for each run and is left behind for a look at its ledger."""

    name = "ours"

    def __init__(self, options: Options) -> None:
        self._data_dir: Path = options.build_dir / "bench-data"
        self._log = options.logs_dir / "ours.log"
        self._group: ProcessGroup | None = None
        self._port = 0
        self._grpc_base_port = 0

    def install(self) -> None:
        if not _COMMAND.exists():
            raise AbsentError(f"{_COMMAND.relative_to(ROOT)} does not exist yet")

    def start(self, upstream_port: int) -> None:
        shutil.rmtree(self._data_dir, ignore_errors=True)
        self._port = free_port()
        self._grpc_base_port = free_base_port(_GRPC_OFFSETS)
        upstream = f"http://127.0.0.1:{upstream_port}/v1"
        command = [str(_COMMAND), "up", "--host", "127.0.0.1", "--port", str(self._port), *self._place()]
        command += ["--upstream", upstream, "--upstream-dialect", "openai"]
        self._group = ProcessGroup(command, self._log)

    def wait_ready(self) -> tuple[Route, ...]:
        assert self._group is not None
        wait_until(lambda: "ready http://" in self._log.read_text("utf-8", "replace"), self._group, 60)
        bearer = (("authorization", f"Bearer {self._create_key()}"),)
        return (
            Route("ours, chat", (self._port,), _MODEL, bearer),
            Route("ours, messages", (self._port,), _MODEL, bearer, "/v1/messages", "messages"),
        )

    def _place(self) -> list[str]:
        return ["--grpc-base-port", str(self._grpc_base_port), "--data-dir", str(self._data_dir)]

    def _create_key(self) -> str:
        command = [str(_COMMAND), "account", "create", "--name", "bench", *_CEILINGS, *self._place(), "--json"]
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if made.returncode:
            raise AbsentError(f"no account could be made: {made.stderr.strip()[-300:]}")
        key: str = json.loads(made.stdout)["api_key"]
        return key

    def check_ledger(self) -> str:
        """That the ledger was on, and is right: the verdict of our own checker on everything that the run charged."""
        command = [str(_COMMAND), "ledger", "check", *self._place()]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        text = " ".join((said.stdout or said.stderr).split())[-300:]
        return f"{'holds' if said.returncode == 0 else 'DOES NOT HOLD'}: {text}"

    def pids(self) -> frozenset[int]:
        if self._group is None:
            return frozenset()
        roots = [self._group.pid]
        for path in self._data_dir.glob("run/*.pid"):
            with contextlib.suppress(ValueError, OSError):
                roots.append(int(path.read_text()))
        return process_tree(roots)

    def version(self) -> str:
        said = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return f"mws at {said.stdout.strip() or 'an unknown commit'}, one process of each kind"

    def stop(self) -> None:
        if self._group:
            self._group.stop()
