"""One HTTP request and its answer on raw ASGI: headers in, body in, head and body out, and whether the client is there.

Owns the order of ASGI messages and the headers that every answer carries; refuses to know dialects and services.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from mws.common.v1 import limits_pb2

from edge.connection import AnswerCycle
from edge.limit_headers import Headers, limit_headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]

JSON = (b"content-type", b"application/json")
_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_ID_MAX = 128


class ClientGoneError(Exception):
    """The client left before its request was complete."""


class Exchange:
    """One request and its answer. `status` is 0 until the head has left."""

    __slots__ = (
        "_receive",
        "_send",
        "account_id",
        "call_id",
        "dropped_images",
        "extra_headers",
        "input_tokens",
        "is_complete",
        "is_gone",
        "is_replay",
        "is_stream",
        "limits",
        "on_gone",
        "output_tokens",
        "profile",
        "reason",
        "request_headers",
        "route",
        "scope",
        "started",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, call_id: str, started: float) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.call_id = call_id
        self.started = started  # seconds, of the performance counter
        self.request_headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.route = ""
        self.status = 0
        self.is_stream = False
        self.is_gone = False
        self.is_replay = False
        self.is_complete = False
        self.on_gone: Callable[[], object] | None = None
        self.limits: limits_pb2.LimitsSnapshot | None = None
        self.account_id = ""
        self.profile = ""
        self.dropped_images = 0
        self.extra_headers: Headers = []  # of whatever answer leaves
        self.input_tokens = 0
        self.output_tokens = 0
        self.reason = ""

    def header(self, name: bytes) -> bytes | None:
        """A request header by its lower-case name; the first one if it is repeated."""
        for key, value in self.request_headers:
            if key == name:
                return value
        return None

    async def receive_piece(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more follows. Raises ClientGoneError."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_gone = True
            raise ClientGoneError
        return message.get("body", b""), message.get("more_body", False)

    def watch(self, on_gone: Callable[[], object], spawn: Spawn) -> None:
        """Calls `on_gone` when the client leaves before its answer is complete. Only once the body is read."""
        self.on_gone = on_gone
        cycle = getattr(self._receive, "__self__", None)
        if not isinstance(cycle, AnswerCycle):  # another server than ours: ask it, with a task
            spawn(self._wait_for_departure())
        elif cycle.disconnected:
            self._depart()
        else:
            cycle.on_gone = self._depart

    async def _wait_for_departure(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._depart()

    def _depart(self) -> None:
        if not self.is_complete:
            self.is_gone = True
            if self.on_gone is not None:
                self.on_gone()

    @property
    def has_started(self) -> bool:
        """The head has left, so the status can no longer change."""
        return self.status != 0

    async def respond(self, status: int, body: bytes, headers: Headers, *, kind: tuple[bytes, bytes] = JSON) -> None:
        """A whole answer; `kind` is its content type."""
        self.status = status
        self.is_complete = True
        head = [kind, (b"content-length", b"%d" % len(body)), *headers]
        self._add_own(head)
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self) -> None:
        """The head of an event stream."""
        self.status = 200
        self.is_stream = True
        head = list(_STREAM_HEADERS)
        self._add_own(head)
        await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def send_frames(self, frames: bytes, *, is_last: bool = False) -> None:
        """Frames of a started stream."""
        if is_last:
            self.is_complete = True
        await self._send({"type": "http.response.body", "body": frames, "more_body": not is_last})

    def _add_own(self, head: Headers) -> None:
        call_id = self.call_id.encode()
        head.append((b"request-id", call_id))
        head.append((b"x-request-id", self._callers_id() or call_id))
        if self.profile:
            head.append((b"x-mws-profile", self.profile.encode()))
        if self.is_replay:
            head.append((b"idempotent-replayed", b"true"))
        if self.dropped_images:
            head.append((b"x-mws-dropped", b"images=%d" % self.dropped_images))
        if self.limits is not None:
            head.extend(limit_headers(self.limits))
        if self.extra_headers:
            head.extend(self.extra_headers)

    def _callers_id(self) -> bytes | None:
        """A caller's own `x-request-id`, which is echoed and used for nothing else."""
        value = self.header(b"x-request-id")
        if value and len(value) <= _ID_MAX and all(0x21 <= byte <= 0x7E for byte in value):
            return value
        return None
