"""One link to one endpoint: dialled, greeted, kept alive, and ended so that nothing on it hangs.

Owns the client's end of the gRPC stream; refuses to choose endpoints and to dial again.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from mws.link.v1.frame_pb2 import GOAWAY_REASON_AGE, Frame, Hello
from mws.link.v1.link_service_pb2 import OpenRequest
from mws.link.v1.link_service_pb2_grpc import LinkServiceStub

from services.link.client_calls import unreachable
from services.link.client_link import ClientLink
from services.link.frames import HELLO, MESSAGE_BYTES, PING, RESPONSE_WINDOW_BYTES, VERSION
from services.link.liveness import Liveness
from services.link.options import EOF, WIRE_CHANNEL_OPTIONS, LinkOptions
from services.link.pump import Pump
from services.link.reassembly import ProtocolViolationError
from services.runtime.errors import GatewayError

_BROKEN = (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError)
"""What reads and writes raise on a stream that has ended."""


class DialError(Exception):
    """An endpoint does not answer as one of our servers."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the client says that it is: the service token, and a name for logs."""

    token: str
    name: str

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r})"


class Connection:
    """`left` is done when no new call should go here; its result says whether they may until a new link stands.

    `on_broken` is called in the very turn of the loop in which the link breaks, before its calls learn of it.
    """

    def __init__(self, endpoint: str, options: LinkOptions) -> None:
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.opened_at = loop.time()
        self.left: asyncio.Future[bool] = loop.create_future()
        self.link: ClientLink
        self.on_broken: Callable[[Connection], None] | None = None
        self._loop = loop
        self._options = options
        self._pump = Pump(loop, OpenRequest)
        self._channel = grpc.aio.insecure_channel(endpoint, options=WIRE_CHANNEL_OPTIONS)
        stub: Any = LinkServiceStub(self._channel)
        self._stream = stub.Open()
        self._silent = False

    async def dial(self, identity: Identity) -> None:
        """Opens the link. Raises DialError."""
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                await self._stream.write(_hello(identity))
                answer = await self._stream.read()
        except (*_BROKEN, TimeoutError) as error:
            await self._end_stream()
            raise DialError(_describe(error)) from error
        except asyncio.CancelledError:
            await self._end_stream()
            raise
        hello = _hello_of(answer)
        if hello is None:
            await self._end_stream()
            raise DialError("no HELLO of our version")
        self.link = ClientLink(self._loop, self._pump.outbox, hello.window_bytes)
        self.link.on_goaway = self._on_goaway

    async def run(self) -> None:
        """Carries calls until the link ends, in good order or not."""
        reader = asyncio.current_task()
        assert reader is not None
        outbox = self._pump.outbox
        liveness = Liveness(self._loop, self._options, lambda: outbox.add_simple(0, PING), self._on_dead)
        writer = self._loop.create_task(self._write(), name=f"link writer {self.endpoint}")
        try:
            while (batch := await self._stream.read()) is not EOF:
                liveness.silent_ticks = 0
                self.link.on_batch(batch)
        except (*_BROKEN, ProtocolViolationError):
            pass  # whatever broke it, the calls learn the same
        except asyncio.CancelledError:
            if not self._silent:
                raise
        finally:
            liveness.stop()
            if self.on_broken is not None:
                self.on_broken(self)
            self.link.fail(_broken)
            self._leave(False)
            writer.cancel()
            await self._end_stream()

    def retire(self) -> None:
        """No more calls come: ends the link in good order after the last."""
        self._leave(False)
        if self.link.calls:
            self.link.on_idle = self._pump.finish
        else:
            self._pump.finish()

    def _on_goaway(self, reason: int) -> None:
        self._leave(reason == GOAWAY_REASON_AGE)

    def _leave(self, usable: bool) -> None:
        if not self.left.done():
            self.left.set_result(usable)

    def _on_dead(self) -> None:
        self._silent = True
        self._stream.cancel()

    async def _write(self) -> None:
        with contextlib.suppress(*_BROKEN):
            await self._pump.run(self._stream.write)
            await self._stream.done_writing()

    async def _end_stream(self) -> None:
        self._stream.cancel()
        await self._channel.close(None)


def _broken() -> GatewayError:
    return unreachable("the link to the service broke")


def _hello(identity: Identity) -> OpenRequest:
    hello = Hello(
        version=VERSION,
        token=identity.token,
        peer=identity.name,
        window_bytes=RESPONSE_WINDOW_BYTES,
        max_message_bytes=MESSAGE_BYTES,
    )
    return OpenRequest(frames=[Frame(kind=HELLO, hello=hello)])  # type: ignore[arg-type]


def _hello_of(answer: object) -> Hello | None:
    frames = getattr(answer, "frames", None)
    if not frames or frames[0].kind != HELLO or frames[0].hello.version != VERSION:
        return None
    hello: Hello = frames[0].hello
    return hello


def _describe(error: Exception) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__


Dial = Callable[[str], Connection]
