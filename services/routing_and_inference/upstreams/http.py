"""What the dialects need from HTTP: post a body, read the answer in pieces, leave at any moment.

Owns the port and its shapes; refuses to know sockets (`http_client`) and what an answer means (the dialects).
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec


class HttpFailureKind(enum.StrEnum):
    """How an exchange failed below the level of status codes."""

    CONNECT = "connect"  # no connection, or it closed before the head of the answer
    TIMEOUT = "timeout"
    CUT = "cut"  # the body broke off
    MALFORMED = "malformed"  # not HTTP, or a body larger than allowed


class HttpFailure(Exception):  # noqa: N818 - translated into an UpstreamFailure by the dialects, never seen beyond them
    """An exchange that failed below the level of status codes."""

    def __init__(self, kind: HttpFailureKind) -> None:
        super().__init__(kind.value)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each phase may take."""

    connect_s: float = 5.0  # TCP and TLS
    first_byte_s: float = 600.0  # from the request's last byte to the head of the answer
    idle_s: float = 120.0  # without a byte of the body while somebody waits for one
    total_s: float = 900.0


Headers = tuple[tuple[str, str], ...]


class HttpRequest(msgspec.Struct, frozen=True, eq=False):
    """One POST. Header names are lower case; values hold no line breaks.

    `fixed` are the headers that every request to this place has; they are written out once.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes
    timeouts: Timeouts
    fixed: Headers = ()


class HttpResponse(Protocol):
    """An answer whose head has arrived. Its reader calls `close` at the end, or `leave` and then perhaps `close`."""

    @property
    def status(self) -> int:
        """The status code."""

    def header(self, name: str) -> str:
        """The first value of a header (name in lower case), or the empty text."""

    async def read_chunk(self) -> bytes:
        """All of the body that has arrived since the last call, waiting for some if need be; empty at the end.

        Decompressed. Raises HttpFailure (TIMEOUT, CUT, MALFORMED).
        """

    async def read(self, limit: int) -> bytes:
        """The rest of the body. Raises HttpFailure as `read_chunk`, and MALFORMED over `limit` bytes."""

    def expect_end(self, idle_s: float) -> None:
        """Shortens the idle timeout: the caller has what it needs and waits for a formality."""

    def leave(self) -> None:
        """Ends the exchange at once. The connection is kept only when the body is complete, or about to be."""

    def close(self) -> None:
        """Ends the exchange at once and closes its connection unless the body is complete."""


class HttpClient(Protocol):
    """One connection pool."""

    async def post(self, request: HttpRequest) -> HttpResponse:
        """Sends the request and waits for the head of the answer; redirects are not followed.

        Cancelling closes the connection at once. Raises HttpFailure (CONNECT, TIMEOUT, MALFORMED).
        """
