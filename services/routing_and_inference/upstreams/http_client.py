"""The HTTP/1.1 client towards upstreams: one pool of connections per process.

Owns choosing, opening and keeping connections; refuses to parse (`http_connection`) and to follow redirects or proxies.
"""

import asyncio
import functools
import ssl
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from services.routing_and_inference.upstreams.http import (
    Headers,
    HttpFailure,
    HttpFailureKind,
    HttpRequest,
    Timeouts,
)
from services.routing_and_inference.upstreams.http_connection import Connection, Exchange

_IDLE_S = 30.0  # a connection unused for longer is closed; most servers close theirs after 60 s or more
_MAX_IDLE = 512  # per origin
_STALE_S = 1.0  # a kept connection that closes within this time of a request was closing already


class _Origin(NamedTuple):
    tls: bool
    host: str
    port: int


@functools.lru_cache(maxsize=4096)
def _beginning(url: str, fixed: Headers) -> tuple[_Origin, bytes]:
    """The origin of a URL, and the beginning that all POSTs to it have in common."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("an upstream's URL is http or https")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    authority = host if port == (443 if tls else 80) else f"{host}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    first_lines = f"POST {target} HTTP/1.1\r\nhost: {authority}\r\n".encode("ascii")
    # Compressed event streams arrive late and cost more than they save; one that comes anyway is understood.
    return _Origin(tls, parts.hostname, port), first_lines + _lines((*fixed, ("accept-encoding", "identity")))


def _lines(headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    text = "".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines):
        raise ValueError("a header value holds a line break")
    return text.encode("latin-1")


class PooledHttpClient:
    """Implements `HttpClient` on the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: dict[_Origin, list[Connection]] = {}
        self._all: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def post(self, request: HttpRequest) -> Exchange:
        origin, beginning = _beginning(request.url, request.fixed)
        head = b"%b%bcontent-length: %d\r\n\r\n" % (beginning, _lines(request.headers.items()), len(request.body))
        kept = self._take(origin)
        if kept is not None:
            sent_at = self._loop.time()
            try:
                return await kept.start(head, request.body, request.timeouts).answered()
            except HttpFailure as failure:
                closing_already = self._loop.time() - sent_at < _STALE_S
                if failure.kind is not HttpFailureKind.CONNECT or kept.heard or not closing_already:
                    raise
        fresh = await self._connect(origin, request.timeouts)
        return await fresh.start(head, request.body, request.timeouts).answered()

    async def aclose(self) -> None:
        """Closes every connection; exchanges under way fail."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._all):
            connection.abort()
        while self._all:  # transports report their end in the loop's next turns
            await asyncio.sleep(0)

    async def _connect(self, origin: _Origin, timeouts: Timeouts) -> Connection:
        def connection() -> Connection:
            return Connection(functools.partial(self._keep, origin), self._forget)

        try:
            async with asyncio.timeout(timeouts.connect_s):
                _, made = await self._loop.create_connection(
                    connection, origin.host, origin.port, ssl=self._tls_context() if origin.tls else None
                )
        except TimeoutError:
            raise HttpFailure(HttpFailureKind.CONNECT) from None
        except OSError:  # refused, unreachable, unknown host, TLS refused
            raise HttpFailure(HttpFailureKind.CONNECT) from None
        self._all.add(made)
        if not made.usable:  # closed in the very turn that opened it
            self._forget(made)
            raise HttpFailure(HttpFailureKind.CONNECT)
        return made

    def _take(self, origin: _Origin) -> Connection | None:
        idle = self._idle.get(origin)
        oldest = self._loop.time() - _IDLE_S
        while idle:
            connection = idle.pop()  # the one used last: the others may grow old and go
            if connection.usable:
                if connection.idle_since > oldest:
                    return connection
                connection.abort()
        return None

    def _keep(self, origin: _Origin, connection: Connection) -> None:
        idle = self._idle.setdefault(origin, [])
        if self._closed or len(idle) >= _MAX_IDLE:
            connection.abort()
            return
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_IDLE_S, self._sweep)

    def _sweep(self) -> None:
        oldest = self._loop.time() - _IDLE_S
        for origin, idle in list(self._idle.items()):
            for connection in idle:
                if connection.idle_since <= oldest:
                    connection.abort()
            idle[:] = [connection for connection in idle if connection.usable and connection.idle_since > oldest]
            if not idle:
                del self._idle[origin]
        self._sweeper = self._loop.call_later(_IDLE_S / 2, self._sweep) if self._idle else None

    def _forget(self, connection: Connection) -> None:
        self._all.discard(connection)

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls
