"""Runs a deployment's processes: starts, watches, restarts with backoff, drains in order.

Owns child processes and their pid files; refuses to know what they do beyond "ready" and "exited".
"""

import asyncio
import contextlib
import ctypes
import errno
import itertools
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli import running
from services.cli.deployment import Deployment, ProcessSpec
from services.cli.running import StartError
from services.runtime.callers import mint_secrets

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 10.0
SETTLED_AFTER_S = 5.0
"""A process that lived this long starts its backoff anew: it had come up and served."""
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
"""Above every process's own drain."""
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

Announce = Callable[[str], None]


@dataclass(slots=True)
class _Child:
    spec: ProcessSpec
    process: asyncio.subprocess.Process | None = None
    started: float = 0.0
    backoff_s: float = FIRST_BACKOFF_S
    exits: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Manager:
    """One deployment, from the first fork to the last wait."""

    def __init__(self, deployment: Deployment, *, restart: bool, announce: Announce) -> None:
        self._deployment = deployment
        self._restart = restart
        self._announce = announce
        self._children = [_Child(spec) for spec in deployment.processes()]
        self._stopping = asyncio.Event()
        self._run_dir = deployment.data_dir / "run"
        self._log_dir = deployment.data_dir / "log"

    async def run(self, on_ready: Callable[[], None]) -> int:
        """Starts everything, calls `on_ready` once every process answers, then watches until SIGTERM or SIGINT.

        Returns the exit status: 0 after a drain. Raises StartError if a port is taken or a process does not come up.
        """
        with running.claim(self._deployment.data_dir) as claim:
            return await self._run(claim, on_ready)

    async def _run(self, claim: running.Claim, on_ready: Callable[[], None]) -> int:
        self._prepare()
        claim.announce(self._deployment, is_ready=False)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        watchers = [asyncio.ensure_future(self._watch(child)) for child in self._children]
        try:
            await self._until_ready_or_stopped()
            if not self._stopping.is_set():
                claim.announce(self._deployment, is_ready=True)
                on_ready()
            await self._stopping.wait()
        finally:
            self._stopping.set()
            await self._drain()
            await asyncio.gather(*watchers)
        return 0

    def _prepare(self) -> None:
        for directory in (self._run_dir, self._log_dir):
            directory.mkdir(parents=True, exist_ok=True)
        taken = [port for port in self._deployment.ports() if not _is_free(self._deployment.host, port)]
        if taken:
            raise StartError(
                f"port {', '.join(map(str, taken))} on {self._deployment.host} is in use; "
                "stop what listens there, or choose others with --port and --grpc-base-port"
            )
        try:
            mint_secrets(self._deployment.secrets_dir)
        except ValueError as error:
            raise StartError(f"{self._deployment.secrets_dir}/callers.json is damaged: {error}") from error

    async def _watch(self, child: _Child) -> None:
        while not self._stopping.is_set():
            await self._start(child)
            assert child.process is not None
            status = await child.process.wait()
            if self._stopping.is_set():
                self._pid_file(child).unlink(missing_ok=True)
                return
            child.exits += 1
            if not self._restart:
                self._pid_file(child).unlink(missing_ok=True)
                self._announce(f"{child.spec.name} exited with status {status}; not restarted")
                await self._stopping.wait()
                return
            if asyncio.get_running_loop().time() - child.started > SETTLED_AFTER_S:
                child.backoff_s = FIRST_BACKOFF_S
            self._announce(f"{child.spec.name} exited with status {status}; restarting in {child.backoff_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), child.backoff_s)
                self._pid_file(child).unlink(missing_ok=True)
            child.backoff_s = min(child.backoff_s * 2, LONGEST_BACKOFF_S)

    async def _start(self, child: _Child) -> None:
        log_path = self._log_dir / f"{child.spec.name}.log"
        child.started = asyncio.get_running_loop().time()
        with log_path.open("ab") as log:
            child.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                child.spec.module,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The children need the caller's environment (PATH, provider keys) besides their own variables.
                env={**os.environ, **child.spec.environment},  # noqa: TID251
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
        pid_path = self._pid_file(child)
        temporary = pid_path.with_suffix(".tmp")
        temporary.write_text(f"{child.process.pid}\n")
        temporary.replace(pid_path)

    def _pid_file(self, child: _Child) -> Path:
        return self._run_dir / f"{child.spec.name}.pid"

    async def _until_ready_or_stopped(self) -> None:
        ready = asyncio.ensure_future(self._until_ready())
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            waiting = [child for child in self._children if not child.settled.is_set()]
            names = ", ".join(child.spec.name for child in waiting)
            detail = "\n".join(self._last_lines(child) for child in waiting)
            raise StartError(f"{names} did not become ready within {START_TIMEOUT_S:g} s\n{detail}") from None
        finally:
            stopped.cancel()
            ready.cancel()
        if ready.done() and not ready.cancelled():
            ready.result()

    async def _until_ready(self) -> None:
        await asyncio.gather(*(self._until_child_ready(child) for child in self._children))

    async def _until_child_ready(self, child: _Child) -> None:
        while not await self._is_ready(child):
            if child.exits:  # what cannot start once needs a person, and not another try
                raise StartError(f"{child.spec.name} does not start\n{self._last_lines(child)}")
            await asyncio.sleep(_POLL_S)
        child.settled.set()

    async def _is_ready(self, child: _Child) -> bool:
        if child.spec.service == "edge":
            return await _answers_http(child.spec.endpoint, "/readyz")
        return await _answers_health(child.spec.endpoint)

    def _last_lines(self, child: _Child) -> str:
        path = self._log_dir / f"{child.spec.name}.log"
        lines = path.read_text(errors="replace").splitlines()[-15:] if path.exists() else []
        return "\n".join([f"last lines of {path}:", *(f"  {line}" for line in lines)])

    async def _drain(self) -> None:
        """One service after the other, the replicas of a service together."""
        for _, replicas in itertools.groupby(self._children, key=lambda child: child.spec.service):
            await asyncio.gather(*(self._stop(child) for child in replicas))

    async def _stop(self, child: _Child) -> None:
        process = child.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._announce(f"{child.spec.name} did not stop within {STOP_TIMEOUT_S:g} s; killed")
            process.kill()
            await process.wait()


def _die_with_parent() -> None:
    """A manager that is killed takes its children along, so that nothing keeps the ports."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_free(host: str, port: int) -> bool:
    """Whether a port is not taken. Raises StartError for an address at which nothing can listen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
            return False
    return True


def at_free_ports(deployment: Deployment) -> Deployment:
    """The deployment at its ports, or at the next ones (in steps of 10) at which the whole of it fits."""
    while not all(_is_free(deployment.host, port) for port in deployment.ports()):
        port, grpc_base_port = deployment.port + 10, deployment.grpc_base_port + 10
        if max(port, grpc_base_port) > 65_000:
            raise StartError(f"no free ports on {deployment.host}")
        deployment = replace(deployment, port=port, grpc_base_port=grpc_base_port)
    return deployment


async def _answers_http(endpoint: str, path: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                status_line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status_line.split(b" ")[1:2] == [b"200"]


async def _answers_health(endpoint: str) -> bool:
    try:
        async with grpc.aio.insecure_channel(endpoint) as channel:
            response = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="readiness"), timeout=1
            )
    except grpc.aio.AioRpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
