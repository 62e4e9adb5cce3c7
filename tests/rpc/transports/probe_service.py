"""A service to look at transports with: it echoes, streams, fails, waits, and remembers how its calls ended.

Owns handlers and the three ways to open a channel to them; refuses to assert anything.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

from mws.common.v1 import limits_pb2

from services.link.client import LinkChannel
from services.link.connection import Identity
from services.link.in_process import InProcessChannel
from services.link.options import LinkOptions
from services.link.server import Identify, LinkListener
from services.runtime.callers import BearerCallers, ServiceTokens, digest_of
from services.runtime.calls import Call, Caller, CallerClass, CancelReason, Method, MethodTable
from services.runtime.channel import GrpcChannel
from services.runtime.errors import FieldViolation, InvalidCredentialError, InvalidRequestError, RateLimitedError
from services.runtime.guard import ServiceGuard
from services.runtime.logging import EventLog
from services.runtime.server import GrpcListener, Health

TOKEN = "a-service-token"
CALLER = Caller(CallerClass.EDGE, "edge-0")
LIMITS = limits_pb2.LimitsSnapshot()
PIECE = b"p" * 1000


class ProbeService:
    """Handlers, and what they saw. `ends` holds one entry for each call of Wait or Trickle that was cancelled."""

    def __init__(self) -> None:
        self.ends: list[CancelReason | None] = []
        self.running = 0
        self.produced = 0
        self.opened = asyncio.Event()  # lets Gate go on
        self.calls: list[Call] = []
        self.table = MethodTable()
        for name, behavior, is_streaming in (
            ("Echo", self.echo, False),
            ("Fail", self.fail, False),
            ("Break", self.break_down, False),
            ("Wait", self.wait, False),
            ("Gate", self.gate, False),
            ("Count", self.count, True),
            ("CountThenFail", self.count_then_fail, True),
            ("Trickle", self.trickle, True),
            ("Flood", self.flood, True),
        ):
            path = f"/mws.test.v1.ProbeService/{name}"
            self.table.methods[path] = Method(path, behavior, bytes, bytes, is_streaming)

    async def echo(self, request: bytes, call: Call) -> bytes:
        """Answers the request; sends all `x-` metadata back."""
        self.calls.append(call)
        call.trailing_metadata = [(key, value) for key, value in call.metadata if key.startswith("x-")]
        return request

    async def fail(self, request: bytes, call: Call) -> bytes:
        """Fails with everything that a status can hold."""
        if request:
            raise InvalidRequestError("no", violations=[FieldViolation("a.b", "is wrong")])
        raise RateLimitedError(
            "slow down", retry_in=timedelta(seconds=1.5), metadata={"limit": "tokens"}, details=[LIMITS]
        )

    async def break_down(self, request: bytes, call: Call) -> bytes:
        """Fails with what no handler should raise."""
        raise KeyError(request.decode())

    async def wait(self, request: bytes, call: Call) -> bytes:
        """Never answers."""
        self.running += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append(call.cancel_reason)
            raise
        finally:
            self.running -= 1
        return b""

    async def gate(self, request: bytes, call: Call) -> bytes:
        """Answers once `opened` is set."""
        self.running += 1
        await self.opened.wait()
        self.running -= 1
        return request

    async def count(self, request: bytes, call: Call) -> AsyncIterator[bytes]:
        """Yields as many numbers as it is asked to."""
        for number in range(int(request)):
            yield str(number).encode()
        call.trailing_metadata = [("x-counted", request.decode())]

    async def count_then_fail(self, request: bytes, call: Call) -> AsyncIterator[bytes]:
        """Yields three numbers and fails."""
        for number in range(3):
            yield str(number).encode()
        raise RateLimitedError("that is enough")

    async def trickle(self, request: bytes, call: Call) -> AsyncIterator[bytes]:
        """Yields one message and then waits for ever."""
        self.running += 1
        try:
            yield b"first"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append(call.cancel_reason)
            raise
        finally:
            self.running -= 1

    async def flood(self, request: bytes, call: Call) -> AsyncIterator[bytes]:
        """Yields without end, as fast as it may."""
        self.running += 1
        try:
            while True:
                yield PIECE
                self.produced += 1
        finally:
            self.running -= 1

    def guard(self) -> ServiceGuard:
        """The guard that every process has, with all features on."""
        log = EventLog(io.BytesIO(), process="probe")
        return ServiceGuard(self.table, log, allowed=dict.fromkeys(self.table.methods, frozenset({CallerClass.EDGE})))


def identify(token: str) -> Caller:
    """The caller of a link."""
    if token != TOKEN:
        raise InvalidCredentialError("not one of ours")
    return CALLER


class Stub:
    """What generated code would make for ProbeService."""

    def __init__(self, channel: Any) -> None:
        def unary(name: str) -> Any:
            return channel.unary_unary(f"/mws.test.v1.ProbeService/{name}", bytes, bytes)

        def stream(name: str) -> Any:
            return channel.unary_stream(f"/mws.test.v1.ProbeService/{name}", bytes, bytes)

        self.Echo, self.Fail, self.Break = unary("Echo"), unary("Fail"), unary("Break")
        self.Wait, self.Gate, self.Missing = unary("Wait"), unary("Gate"), unary("Missing")
        self.Count, self.CountThenFail = stream("Count"), stream("CountThenFail")
        self.Trickle, self.Flood = stream("Trickle"), stream("Flood")


@asynccontextmanager
async def over_link(
    service: ProbeService, options: LinkOptions | None = None, identify_peer: Identify = identify
) -> AsyncIterator[tuple[LinkChannel, LinkListener]]:
    """A channel and the listener that it is connected to."""
    listener = LinkListener(service.table, service.guard(), identify_peer, options=options)
    port = await listener.start("127.0.0.1:0")
    channel = LinkChannel([f"127.0.0.1:{port}"], Identity(TOKEN, "edge-0"), options=options)
    try:
        await channel.wait_for_links()
        yield channel, listener
    finally:
        await channel.close()
        await listener.drain(0)


@asynccontextmanager
async def _link(service: ProbeService) -> AsyncIterator[Stub]:
    async with over_link(service) as (channel, _):
        yield Stub(channel)


@asynccontextmanager
async def _plain(service: ProbeService) -> AsyncIterator[Stub]:
    callers = BearerCallers(ServiceTokens({digest_of(TOKEN): CALLER}))
    listener = GrpcListener(service.table, service.guard(), callers, Health())
    port = await listener.start("127.0.0.1:0")
    channel = GrpcChannel([f"127.0.0.1:{port}"], TOKEN)
    try:
        yield Stub(channel)
    finally:
        await channel.close()
        await listener.drain(0)


@asynccontextmanager
async def _in_process(service: ProbeService) -> AsyncIterator[Stub]:
    async with InProcessChannel(service.table, service.guard(), CALLER) as channel:
        yield Stub(channel)


Opener = Callable[[ProbeService], AbstractAsyncContextManager[Stub]]
TRANSPORTS: Mapping[str, Opener] = {"plain": _plain, "link": _link, "in_process": _in_process}


async def until(condition: Callable[[], bool], *, within_s: float = 5.0) -> None:
    """Returns once the condition holds; fails when it does not in time."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)


async def outcome_of(call: Any) -> Any:
    """What awaiting a call gives: the response, or the class of the failure."""
    try:
        return await call
    except Exception as error:  # noqa: BLE001 - the outcome is what the test is about
        return type(error)


def background(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Runs work beside the test, which awaits or cancels it."""
    return asyncio.get_running_loop().create_task(work)
