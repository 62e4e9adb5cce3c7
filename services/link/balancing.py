"""Which link a call takes: one link to each endpoint, the less loaded of two drawn at random.

Owns resolving, dialling again with backoff, and the calls that wait for a first link; refuses to resend a call.
"""

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

from services.link.client_calls import ClientCall, unreachable
from services.link.connection import Connection, DialError, Identity
from services.link.options import LinkOptions
from services.runtime.calls import CancelReason

Resolver = Callable[[], Awaitable[Iterable[str]]]
_log = logging.getLogger(__name__)
_STEADY_S = 5.0  # a link that lived this long was a good one: the next failure starts with a short wait again


class Balancer:
    """Keeps a link to every endpoint that `resolve` names, and gives each call one of them."""

    def __init__(self, resolve: Resolver, identity: Identity, options: LinkOptions) -> None:
        self._resolve = resolve
        self._identity = identity
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._ready: list[Connection] = []
        self._waiting: dict[ClientCall, asyncio.TimerHandle] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[asyncio.Task[None], Connection] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self._resolver = self._loop.create_task(self._follow(), name="link resolver")

    def start(self, call: ClientCall) -> None:
        """Sends a call on a link; without one it waits a little."""
        ready = self._ready
        count = len(ready)
        if count == 1:
            ready[0].link.start(call)
        elif count:
            first = int(random.random() * count)  # noqa: S311 - spreads load, guards nothing
            second = int(random.random() * (count - 1))  # noqa: S311
            one, other = ready[first].link, ready[second if second < first else second + 1].link
            (one if len(one.calls) <= len(other.calls) else other).start(call)
        else:
            self._wait(call)

    @property
    def endpoints(self) -> Sequence[str]:
        """The endpoints that new calls may go to now."""
        return [connection.endpoint for connection in self._ready]

    async def wait_for_links(self, count: int) -> None:
        """Returns once this many endpoints can be used."""
        while len(self._ready) < count:
            self._changed.clear()
            await self._changed.wait()

    async def close(self, grace_s: float) -> None:
        """Lets running calls end for a while, cancels the rest, and ends every link."""
        self._closed = True
        tasks = [self._resolver, *self._keepers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for call in list(self._waiting):
            self._give_up(call)
        self._ready.clear()
        for connection in self._runs.values():
            connection.retire()
        if self._runs and grace_s:
            await asyncio.wait(list(self._runs), timeout=grace_s)
        for connection in self._runs.values():
            connection.link.cancel_all(CancelReason.SHUTDOWN)  # the last one makes it end
        if self._runs:
            await asyncio.wait(list(self._runs), timeout=0.5)
        for run in list(self._runs):
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)

    # Calls without a link.

    def _wait(self, call: ClientCall) -> None:
        patience_ends = self._loop.time() + (0.0 if self._closed else self._options.connect_grace_s)
        if call.deadline is not None and call.deadline < patience_ends:
            self._waiting[call] = self._loop.call_at(call.deadline, self._expire, call)
        else:
            self._waiting[call] = self._loop.call_at(patience_ends, self._give_up, call)

    def _expire(self, call: ClientCall) -> None:
        self._waiting.pop(call).cancel()
        call.expire()

    def _give_up(self, call: ClientCall) -> None:
        self._waiting.pop(call).cancel()
        call.end(unreachable("the service cannot be reached"))

    def _start_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for call, timer in waiting.items():
            timer.cancel()
            if not call.ended:
                self.start(call)

    # Links.

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # the name service is away: what was known stays
                wanted = set(await self._resolve())
                for endpoint in self._keepers.keys() - wanted:
                    self._keepers.pop(endpoint).cancel()
                for endpoint in wanted - self._keepers.keys():
                    self._keepers[endpoint] = self._loop.create_task(self._keep(endpoint), name=f"link to {endpoint}")
            await asyncio.sleep(self._options.resolve_every_s)

    async def _keep(self, endpoint: str) -> None:
        """Holds a link to one endpoint, for as long as the endpoint is wanted."""
        current: Connection | None = None
        backoff_s = self._options.backoff_initial_s
        try:
            while True:
                try:
                    fresh = await self._open(endpoint)
                except DialError as error:
                    _log.debug("link.dial_failed", extra={"endpoint": endpoint, "why": str(error)})
                else:
                    self._replace(current, fresh)
                    current = fresh
                    if await fresh.left:
                        continue  # it is old: the next one is opened first
                    self._drop(fresh)
                    if self._loop.time() - fresh.opened_at > _STEADY_S:
                        backoff_s = self._options.backoff_initial_s
                await asyncio.sleep(backoff_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, guards nothing
                backoff_s = min(backoff_s * 1.6, self._options.backoff_max_s)
        finally:
            if current is not None:
                self._drop(current)

    async def _open(self, endpoint: str) -> Connection:
        connection = Connection(endpoint, self._options)
        await connection.dial(self._identity)
        connection.on_broken = self._forget
        run = self._loop.create_task(connection.run(), name=f"link reader {endpoint}")
        self._runs[run] = connection
        run.add_done_callback(self._on_run_ended)
        return connection

    def _replace(self, old: Connection | None, fresh: Connection) -> None:
        self._ready.append(fresh)
        if old is not None:
            self._drop(old)
        self._changed.set()
        self._start_waiting()

    def _drop(self, connection: Connection) -> None:
        self._forget(connection)
        connection.retire()

    def _forget(self, connection: Connection) -> None:
        """Whoever hears that a call failed may call again at once: that call must not go the same way."""
        if connection in self._ready:
            self._ready.remove(connection)

    def _on_run_ended(self, run: asyncio.Task[None]) -> None:
        connection = self._runs.pop(run)
        self._forget(connection)
        if not run.cancelled() and (error := run.exception()) is not None:
            _log.error("link.broke", exc_info=error, extra={"endpoint": connection.endpoint})


def resolver_of(endpoints: Sequence[str]) -> Resolver:
    """Resolves a list of `host:port` and `dns:host:port`; each address behind such a name is an endpoint."""

    async def resolve() -> set[str]:
        found: set[str] = set()
        for endpoint in endpoints:
            if endpoint.startswith("dns:"):
                found |= await _addresses(endpoint.removeprefix("dns:"))
            else:
                found.add(endpoint)
        return found

    return resolve


async def _addresses(endpoint: str) -> set[str]:
    host, _, port = endpoint.rpartition(":")
    infos = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    return {_address(info[0], str(info[4][0]), port) for info in infos}


def _address(family: int, host: str, port: str) -> str:
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
