"""One process from start to exit: logging, signals, background work, connections, listeners, drain.

Owns the order of a life (start, ready, drain, exit) and what ends it; refuses to know what the process is for.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

import grpc
import structlog
import uvloop
from pydantic import ValidationError

from services.link.server import LinkListener
from services.runtime.callers import (
    FOR_ITS_OWNER_ALONE,
    KEEP_TEAMS_S,
    BearerCallers,
    ResolveCaller,
    ServiceTokens,
    read_token,
)
from services.runtime.calls import CallerClass, MethodTable
from services.runtime.channel import connect
from services.runtime.guard import ServiceGuard
from services.runtime.logging import configure_logging
from services.runtime.server import GrpcListener, Health
from services.runtime.settings import ProcessSettings
from services.runtime.telemetry import MetricsListener, Tracing

_log = structlog.get_logger()
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_YOUNG_OBJECTS = 20_000  # the interpreter's default is 700
_CANCEL_S = 10.0  # how long cancelled background work may take to end


class ProcessFailedError(Exception):
    """The process cannot go on; its cause is in the log. `run` turns it into exit code 1."""


class Readiness:
    """Named conditions. The process is ready while it serves and all of them hold."""

    def __init__(self) -> None:
        self._conditions: dict[str, bool] = {}
        self._changed: list[Callable[[], None]] = []

    def set(self, name: str, holds: bool) -> None:
        """Sets a condition; the first call adds it."""
        if self._conditions.get(name) is holds:
            return
        self._conditions[name] = holds
        for notify in self._changed:
            notify()

    def missing(self) -> list[str]:
        """The conditions that do not hold."""
        return [name for name, holds in self._conditions.items() if not holds]

    @property
    def is_ready(self) -> bool:
        """Whether all conditions hold."""
        return not self.missing()

    def on_change(self, notify: Callable[[], None]) -> None:
        """Calls `notify` after every change."""
        self._changed.append(notify)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the listeners really are; they differ from the settings when those say 0."""

    grpc: int
    link: int
    metrics: int


class Process:
    """The frame around a service: `async with Process(settings, CallerClass.AUTH) as process: …`."""

    def __init__(
        self, settings: ProcessSettings, caller_class: CallerClass, *, log_stream: BinaryIO | None = None
    ) -> None:
        self.settings, self.caller_class = settings, caller_class
        self.readiness = Readiness()
        self.ports: Ports | None = None
        self.health = Health()
        self.log = configure_logging(process=settings.name, level=settings.log_level, stream=log_stream)
        self.tracing = Tracing.configured(settings.name, endpoint=settings.trace_endpoint, file=settings.trace_file)
        self._stop = asyncio.Event()
        self._has_failed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._channels: list[grpc.aio.Channel] = []
        self._drain_callbacks: list[Callable[[], Awaitable[None]]] = []
        self._listeners: tuple[GrpcListener | LinkListener, ...] = ()
        self._metrics: MetricsListener | None = None

    # ---- life ----

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.request_stop)
        self.readiness.on_change(self._publish_readiness)
        _log.info("process.started", transport=self.settings.transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            await self._run_drain_callbacks()
            await self._cancel_tasks()
            for channel in self._channels:
                await channel.close(None)
        finally:
            for number in _SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)
            if self._metrics is not None:
                self._metrics.close()
            self.tracing.close()
            _log.info("process.stopped", failed=self._has_failed or error is not None)
            self.log.flush()
        if self._has_failed and error is None:
            raise ProcessFailedError("background work failed")

    def request_stop(self) -> None:
        """Asks the process to drain and end; the same as SIGTERM."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        """Whether the process was asked to end."""
        return self._stop.is_set()

    async def wait_for_stop(self) -> None:
        """Returns when the process shall end: a signal, `request_stop`, or background work that failed."""
        _settle_garbage()
        await self._stop.wait()

    # ---- what a service builds on ----

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Runs work in the background until it returns or the process ends. An exception ends the process, code 1."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def connect(self, service: str, endpoints: Sequence[str]) -> grpc.aio.Channel:
        """A channel to another service, closed with the process."""
        token = read_token(self.settings.secrets_dir, self.caller_class)
        if not endpoints:
            raise ProcessFailedError(f"no endpoint of {service} is configured")
        channel = connect(endpoints, transport=self.settings.transport, token=token, name=self.settings.name)
        self._channels.append(channel)
        return channel

    def at_drain(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Runs `callback` when no call runs any more, before connections and background work end; last in first out."""
        self._drain_callbacks.append(callback)

    async def serve(
        self, table: MethodTable, *, resolve_caller: ResolveCaller | None = None, keep_callers_s: float = KEEP_TEAMS_S
    ) -> None:
        """Opens the listeners, serves until the process shall end, then drains."""
        await self.start(table, resolve_caller=resolve_caller, keep_callers_s=keep_callers_s)
        await self.wait_for_stop()
        await self.drain()

    async def start(
        self, table: MethodTable, *, resolve_caller: ResolveCaller | None = None, keep_callers_s: float = KEEP_TEAMS_S
    ) -> Ports:
        """Opens the listeners. Raises ProcessFailedError when an address is taken.

        What `resolve_caller` said of a bearer value is believed for `keep_callers_s`.
        """
        settings = self.settings
        guard = ServiceGuard(table, self.log, tracing=self.tracing)
        tokens = ServiceTokens.read(settings.secrets_dir)
        plain = GrpcListener(table, guard, BearerCallers(tokens, resolve_caller, keep_s=keep_callers_s), self.health)
        links = LinkListener(table, guard, tokens.identify)
        self._listeners = (plain, links)
        try:
            grpc_port = await plain.start(f"{settings.host}:{settings.port}")
            link_port = await links.start(f"{settings.host}:{settings.link_port}")
            self._metrics = MetricsListener(settings.host, settings.metrics_port)
        except (OSError, RuntimeError) as error:
            _log.error("process.cannot_listen", host=settings.host, port=settings.port, exc_info=error)
            await self._drain_listeners(0.0)
            raise ProcessFailedError(f"cannot listen on {settings.host}:{settings.port} and its neighbours") from error
        self.ports = Ports(grpc_port, link_port, self._metrics.port)
        await self.health.set("startup", "liveness", is_serving=True)
        await self._set_ready(self.readiness.is_ready)
        _log.info("process.listening", grpc=self.ports.grpc, link=self.ports.link, metrics=self.ports.metrics)
        return self.ports

    async def drain(self) -> None:
        """Not ready any more; no new calls; the running ones get `drain_s` to end; then the `at_drain` callbacks."""
        self._stop.set()
        await self._set_ready(False)
        _log.info("process.draining", drain_s=self.settings.drain_s)
        await self._drain_listeners(self.settings.drain_s)
        await self._run_drain_callbacks()

    # ---- inside ----

    async def _drain_listeners(self, grace_s: float) -> None:
        listeners, self._listeners = self._listeners, ()
        await asyncio.gather(*(listener.drain(grace_s) for listener in listeners))

    def _publish_readiness(self) -> None:
        if self.ports is not None and not self._stop.is_set():
            self.spawn(self._set_ready(self.readiness.is_ready), name="readiness")

    async def _set_ready(self, is_ready: bool) -> None:
        is_ready = is_ready and not self._stop.is_set()
        await self.health.set("", "readiness", is_serving=is_ready)
        if is_ready:
            _log.info("readiness.gained")
        elif missing := self.readiness.missing():
            _log.info("readiness.lacks", missing=", ".join(missing))

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("task.failed", task=task.get_name(), exc_info=error)
        self._has_failed = True
        self._stop.set()

    async def _run_drain_callbacks(self) -> None:
        callbacks, self._drain_callbacks = self._drain_callbacks, []
        for callback in reversed(callbacks):  # one that fails is logged, and the others still run
            await asyncio.wait((self.spawn(_call(callback), name="at drain"),))

    async def _cancel_tasks(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_S)


def _settle_garbage() -> None:
    """What was made at the start lives to the end: the collector need not walk it at every turn.

    Calls make few cycles, so the young generation may grow larger than by default before it is looked at.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)


async def _call(callback: Callable[[], Awaitable[None]]) -> None:
    await callback()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> NoReturn:
    """Runs a process to its end on uvloop and exits: 0 after a drain, 1 when it failed."""
    os.umask(FOR_ITS_OWNER_ALONE)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except ProcessFailedError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except ValidationError as error:
        sys.stderr.write(_bad_settings(error))
        sys.exit(1)
    sys.exit(0)


def _bad_settings(error: ValidationError) -> str:
    """One line for each setting; what was set is not repeated, it may be a secret."""
    lines = [f"setting {'.'.join(map(str, item['loc'])) or 'as a whole'}: {item['msg']}" for item in error.errors()]
    return "".join(f"{line}\n" for line in lines)
