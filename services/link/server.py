"""The links' own listener: greets clients, identifies them, and asks them to leave when it drains.

Owns the server's end of the gRPC streams; refuses to know who may call what and any method.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import grpc
from mws.link.v1.frame_pb2 import GOAWAY_REASON_AGE, GOAWAY_REASON_SHUTDOWN, Frame, Hello
from mws.link.v1.link_service_pb2 import OpenResponse
from mws.link.v1.link_service_pb2_grpc import LinkServiceServicer, add_LinkServiceServicer_to_server

from services.link.client_calls import unreachable
from services.link.frames import FRAME_BYTES, HELLO, MESSAGE_BYTES, PING, REQUEST_WINDOW_BYTES, VERSION
from services.link.liveness import Liveness
from services.link.options import EOF, WIRE_CHANNEL_OPTIONS, LinkOptions
from services.link.pump import Pump
from services.link.reassembly import ProtocolViolationError
from services.link.server_link import ServerLink
from services.runtime.calls import Caller, CancelReason, Guard, MethodTable
from services.runtime.errors import GatewayError, to_status

Identify = Callable[[str], Caller]
_MIN_WINDOW_BYTES = 32 * 1024
_LAST_WORDS_S = 1.0


class LinkServicer(LinkServiceServicer):
    """Serves the methods of a table on every link. `identify` turns HELLO's token into a caller, or raises."""

    def __init__(self, table: MethodTable, guard: Guard, identify: Identify, options: LinkOptions) -> None:
        self._table = table
        self._guard = guard
        self._identify = identify
        self._options = options
        self._links: dict[ServerLink, asyncio.Event] = {}
        self._draining = False

    async def Open(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Serves one link until its client half-closes, or is lost."""
        hello, caller = await self._greet(context)
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        loop = asyncio.get_running_loop()
        pump = Pump(loop, OpenResponse)
        _say_hello(pump)
        link = ServerLink(pump.outbox, self._table, self._guard, caller, hello.window_bytes)
        ended = self._links[link] = asyncio.Event()
        writer = loop.create_task(_write(pump, context), name="link writer")
        age_s = self._options.max_age_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads reconnecting
        ageing = loop.call_later(age_s, link.goaway, GOAWAY_REASON_AGE)
        try:
            await self._read(link, pump, context)
        finally:
            ageing.cancel()
            link.close()
            writer.cancel()
            del self._links[link]
            ended.set()

    async def drain(self, grace_s: float) -> None:
        """Takes no new link, asks the clients to leave, lets running calls end; then cancels the rest."""
        self._draining = True
        for link in self._links:
            link.goaway(GOAWAY_REASON_SHUTDOWN)
        await self._until_ended(grace_s)
        for link in list(self._links):
            link.close(CancelReason.SHUTDOWN, _shutting_down)
            await link.ended()
        await self._until_ended(_LAST_WORDS_S)

    async def _until_ended(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for ended in list(self._links.values()):
                    await ended.wait()

    async def _greet(self, context: Any) -> tuple[Hello, Caller]:
        """Reads HELLO and finds out who speaks; ends the stream otherwise."""
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                first = await context.read()
        except TimeoutError:
            first = None
        frame: Any = first.frames[0] if first and first is not EOF and first.frames else Frame()
        if frame.kind != HELLO or len(first.frames) != 1:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "a link begins with HELLO")
        hello: Hello = frame.hello
        if hello.version != VERSION or hello.window_bytes < _MIN_WINDOW_BYTES:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this server speaks version {VERSION}")
        try:
            return hello, self._identify(hello.token)
        except GatewayError as error:
            details = (("grpc-status-details-bin", to_status(error).SerializeToString()),)
            await context.abort(error.code, error.message, details)
            raise  # abort has raised before

    async def _read(self, link: ServerLink, pump: Pump, context: Any) -> None:
        reader = asyncio.current_task()
        assert reader is not None
        outbox = pump.outbox
        liveness = Liveness(
            asyncio.get_running_loop(), self._options, lambda: outbox.add_simple(0, PING), lambda: reader.cancel(_DEAD)
        )
        try:
            while (batch := await context.read()) is not EOF:
                liveness.silent_ticks = 0
                link.on_batch(batch)
        except ProtocolViolationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except asyncio.CancelledError as error:
            if error.args != (_DEAD,):
                raise
            reader.uncancel()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "nothing heard for too long")
        finally:
            liveness.stop()


_DEAD = "the peer is silent"


class LinkListener:
    """A `grpc.aio` server that serves links and nothing else, on a port of its own."""

    def __init__(
        self, table: MethodTable, guard: Guard, identify: Identify, *, options: LinkOptions | None = None
    ) -> None:
        self._servicer = LinkServicer(table, guard, identify, options or LinkOptions())
        self._server = grpc.aio.server(options=(*WIRE_CHANNEL_OPTIONS, ("grpc.so_reuseport", 0)))
        add_LinkServiceServicer_to_server(self._servicer, self._server)

    async def start(self, address: str) -> int:
        """Listens; returns the port. Raises RuntimeError when the address is taken."""
        port = self._server.add_insecure_port(address)
        await self._server.start()
        return port

    async def drain(self, grace_s: float) -> None:
        """Takes no more links, lets running calls end for `grace_s`, cancels the rest, and stops listening."""
        await self._servicer.drain(grace_s)
        await self._server.stop(_LAST_WORDS_S)


def _say_hello(pump: Pump) -> None:
    frame = pump.outbox.add(FRAME_BYTES)
    frame.kind = HELLO
    hello = frame.hello
    hello.version = VERSION
    hello.window_bytes = REQUEST_WINDOW_BYTES
    hello.max_message_bytes = MESSAGE_BYTES


async def _write(pump: Pump, context: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        await pump.run(context.write)


def _shutting_down() -> GatewayError:
    return unreachable("the service is shutting down")
