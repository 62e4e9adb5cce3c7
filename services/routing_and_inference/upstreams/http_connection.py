"""One HTTP/1.1 connection and the exchange that it is busy with, on asyncio transports and the httptools parser.

Owns bytes, timers and the moment of leaving; refuses to choose connections (`http_client`) and to read bodies.
"""

import asyncio
import zlib
from collections.abc import Callable
from typing import cast

import httptools

from services.routing_and_inference.upstreams.http import HttpFailure, HttpFailureKind, Timeouts

_READ_AHEAD = 256 * 1024  # bytes of body that wait unread before the socket is no longer read
_FORMALITY_S = 1.0  # how long a left exchange may take to send its last bytes before its connection is closed
_NEVER = float("inf")

_GUNZIP_OR_INFLATE = zlib.MAX_WBITS | 32  # reads gzip and zlib, by their headers


class Exchange:
    """One request and its answer; implements `HttpResponse`."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_due",
        "_failure",
        "_idle_s",
        "_inflate",
        "_loop",
        "_size",
        "_timer",
        "_total_due",
        "_waiter",
        "complete",
        "headers",
        "left",
        "status",
    )

    def __init__(self, connection: "Connection", timeouts: Timeouts, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._connection = connection
        self._loop = loop
        self._chunks: list[bytes] = []
        self._size = 0
        self._failure: HttpFailure | None = None
        self._inflate: zlib._Decompress | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._idle_s = timeouts.idle_s
        self._total_due = now + timeouts.total_s
        self._due = min(now + timeouts.first_byte_s, self._total_due)
        self._timer = loop.call_at(self._due, self._on_timer)
        self.headers: dict[bytes, bytes] = {}  # names in lower case; the first value of each
        self.status = 0  # 0: the head has not arrived
        self.complete = False
        self.left = False

    def header(self, name: str) -> str:
        return self.headers.get(name.encode("latin-1"), b"").decode("latin-1")

    async def answered(self) -> "Exchange":
        """Returns itself when the status line and the headers are here. Closes itself when they never will be."""
        try:
            while not self.status and self._failure is None:
                await self._news()
        except BaseException:  # a cancellation may come in the very turn in which the head does
            self.close()
            raise
        if not self.status:
            assert self._failure is not None
            self.close()
            raise self._failure
        return self

    async def read_chunk(self) -> bytes:
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            if self.complete:
                return b""
            self._due = min(self._loop.time() + self._idle_s, self._total_due)
            if self._due < self._timer.when():
                self._rearm()
            await self._news()
        chunks, self._chunks = self._chunks, []
        if self._size > _READ_AHEAD:
            self._connection.resume()
        self._size = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while chunk := await self.read_chunk():
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                raise HttpFailure(HttpFailureKind.MALFORMED)
            if self.complete and self._failure is None:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def expect_end(self, idle_s: float) -> None:
        self._idle_s = min(self._idle_s, idle_s)

    def leave(self) -> None:
        if self.left:
            return
        self.left = True
        self._chunks.clear()
        if self.complete or self._failure is not None:
            return
        # The last bytes usually follow within this packet or the next; keeping the connection saves a handshake.
        self._due = self._loop.time() + _FORMALITY_S
        self._connection.resume()
        self._rearm()

    def close(self) -> None:
        self.left = True
        if not self.complete:
            self.fail(HttpFailureKind.CUT)
            self._connection.abort()

    def take_head(self, status: int) -> None:
        """The head is here (called by the connection)."""
        self.status = status
        self._due = self._total_due
        encoding = self.headers.get(b"content-encoding", b"").strip().lower()
        if encoding in {b"gzip", b"x-gzip", b"deflate"}:
            self._inflate = zlib.decompressobj(_GUNZIP_OR_INFLATE)
        elif encoding not in {b"", b"identity"}:
            self.fail(HttpFailureKind.MALFORMED)

    def take_body(self, data: bytes) -> None:
        """A piece of the body is here (called by the connection)."""
        if self.left:
            return
        if self._inflate is not None:
            try:
                data = self._inflate.decompress(data)
            except zlib.error:
                self.fail(HttpFailureKind.MALFORMED)
                return
            if not data:
                return
        self._chunks.append(data)
        self._size += len(data)
        if self._size > _READ_AHEAD:
            self._connection.pause()

    def take_end(self) -> None:
        """The body is complete (called by the connection)."""
        if self._inflate is not None and not self._inflate.eof and self._failure is None:
            self._failure = HttpFailure(HttpFailureKind.CUT)
        self.complete = True
        self._timer.cancel()

    def fail(self, kind: HttpFailureKind) -> None:
        """The rest will never come; what has arrived can still be read."""
        if not self.complete and self._failure is None:
            self._failure = HttpFailure(kind)
        self._timer.cancel()
        self.wake()

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _news(self) -> asyncio.Future[None]:
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _rearm(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._on_timer)

    def _on_timer(self) -> None:
        # While nobody waits for a byte, only the whole time counts: a slow reader is not a slow upstream.
        due = self._due if self._waiter is not None or self.left else self._total_due
        if self._loop.time() < due:
            self._due = due
            self._rearm()
            return
        self.fail(HttpFailureKind.TIMEOUT)
        self._connection.abort()


class Connection(asyncio.Protocol):
    """A connection, busy with at most one exchange."""

    def __init__(self, on_free: Callable[["Connection"], None], on_lost: Callable[["Connection"], None]) -> None:
        self._on_free = on_free
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._paused = False
        self._until_eof = False
        self._loop = asyncio.get_running_loop()
        self.heard = False  # a byte of the present answer has arrived
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def start(self, head: bytes, body: bytes, timeouts: Timeouts) -> Exchange:
        """Sends a request; the answer arrives at the exchange that is returned."""
        assert self._transport is not None
        self.heard = False
        self._exchange = exchange = Exchange(self, timeouts, self._loop)
        self._transport.writelines((head, body)) if len(body) > 65536 else self._transport.write(head + body)
        return exchange

    def pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # an answer that nobody asked for, or a goodbye in text
            self.abort()
            return
        self.heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            exchange.fail(HttpFailureKind.MALFORMED)
            self.abort()
            return
        exchange.wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if exchange.status and self._until_eof and exc is None:
                exchange.take_end()
                exchange.wake()
            else:
                exchange.fail(HttpFailureKind.CUT if exchange.status else HttpFailureKind.CONNECT)
        self._on_lost(self)

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._exchange is not None
        self._exchange.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the real head follows
            exchange.headers.clear()
            return
        exchange.take_head(status)
        headers = exchange.headers
        self._until_eof = not (
            headers.get(b"content-length") or b"chunked" in headers.get(b"transfer-encoding", b"").lower()
        )

    def on_body(self, body: bytes) -> None:
        assert self._exchange is not None
        self._exchange.take_body(body)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        if exchange.status < 200:
            return
        exchange.take_end()
        self._exchange = None
        if self._paused:
            self.resume()
        if self._parser.should_keep_alive() and self.usable and not self._unsent():
            self.idle_since = self._loop.time()
            self._on_free(self)
        elif self._transport is not None:
            self._transport.close()

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0
