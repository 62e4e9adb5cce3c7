"""Our HTTP connection: uvicorn's, with a cheaper way to write an answer and an immediate word when the client leaves.

Owns how heads and chunks become bytes; refuses to parse requests, which uvicorn and httptools do.
"""

import re
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.runtime.ids import new_id


class AnswerCycle(RequestResponseCycle):
    """One request on a connection. The head waits for the first piece of the body, so that both leave in one write."""

    on_gone: Callable[[], object] | None = None  # called at once when the client leaves before its answer is complete
    _head: bytes | None = None

    async def send(self, message: Any) -> None:
        """ASGI's send."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            if self.response_started:
                raise RuntimeError("the head has left already")
            self._start(message["status"], message.get("headers", ()))
        else:
            if not self.response_started or self.response_complete:
                raise RuntimeError("a body has no place here")
            self._write(message.get("body", b""), is_last=not message.get("more_body", False))

    def _start(self, status: int, headers: Any) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [b"%b: %b\r\n" % header for header in (*self.default_headers, *headers)]
        names = {name.lower() for name, _ in headers}
        self.chunked_encoding = b"content-length" not in names and status not in (204, 304)
        if self.chunked_encoding and self.scope["method"] != "HEAD":
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive and b"connection" not in names:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise RuntimeError("a header holds a line break")
        self._head = b"%b%b\r\n" % (STATUS_LINE[status], head)

    def _write(self, body: bytes, *, is_last: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if is_last:
                body += b"0\r\n\r\n"
        if self._head is not None:
            body, self._head = self._head + body, None
        if body:
            self.transport.write(body)
        if is_last:
            self.response_complete = True
            self.on_gone = None  # nobody waits for it now, and it would keep the whole exchange alive
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


HEAD_LIMIT_BYTES = 64 << 10
# Of a request that cannot be read nobody knows the dialect, so this is the envelope of both.
_ENVELOPE = (
    b'{"type":"error","error":{"type":"invalid_request_error","message":"%b","param":null,"code":null},'
    b'"request_id":"%b"}'
)
_REFUSAL = (
    b"%bcontent-type: application/json\r\ncontent-length: %d\r\nrequest-id: %b\r\nx-request-id: %b\r\n"
    b"x-should-retry: false\r\nconnection: close\r\n\r\n%b"
)
_UPGRADE = re.compile(rb"(\n)upgrade(?=:)", re.IGNORECASE)


def without_upgrade(data: bytes) -> bytes:
    """The same head without its wish for another protocol, which would end the parsing before the body begins.

    Java's client and curl ask for HTTP/2 on every plain connection, and are content with HTTP/1.1.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(rb"\1x-upgrade", head) + end + rest


class Connection(HttpToolsProtocol):
    """A client's connection."""

    _is_in_head = True
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Bytes of the client. A head is read up to a limit; the parser itself has none."""
        if not self._is_in_head:
            super().data_received(data)
            return
        if b"pgrade" in data or b"PGRADE" in data:
            data = without_upgrade(data)
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self._refuse(431, b"The head of the request is too large.")

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        self._refuse(400, msg.encode())

    def _refuse(self, status: int, message: bytes) -> None:
        call_id = new_id().encode()
        body = _ENVELOPE % (message, call_id)
        self.transport.write(_REFUSAL % (STATUS_LINE[status], len(body), call_id, call_id, body))
        self.transport.close()

    def on_message_complete(self) -> None:
        """The next bytes belong to the head of the next request."""
        super().on_message_complete()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """uvicorn makes the cycle and schedules its task; before that runs, the cycle becomes one of ours."""
        self._is_in_head = False
        self._head_bytes = 0
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self.cycle.__class__ = AnswerCycle

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or the answer that closes the connection is out."""
        super().connection_lost(exc)
        cycle = self.cycle
        if isinstance(cycle, AnswerCycle) and cycle.disconnected and cycle.on_gone is not None:
            cycle.on_gone()
            cycle.on_gone = None
