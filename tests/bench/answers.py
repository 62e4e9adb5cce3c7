"""Which bytes are a whole answer: the checks that every measured response passes.

Owns HTTP/1.1 response framing and the marks of the canned answers; refuses to open a connection."""

from collections.abc import Callable
from typing import Final

from tests.bench.canned_upstream import STREAM_CHUNKS


class Response:
    """One response being received. `add` says when it is complete; `problem` says what is wrong with it."""

    __slots__ = ("_body_at", "_chunked", "_length", "_received")

    def __init__(self) -> None:
        self._received = bytearray()
        self._body_at = 0
        self._length = 0
        self._chunked = False

    def add(self, data: bytes) -> bool:
        self._received += data
        if not self._body_at and not self._read_head():
            return False
        if self._chunked:
            # Nothing is pipelined, so the last chunk is the end of what was received.
            return self._received.endswith(b"\r\n0\r\n\r\n")
        return len(self._received) >= self._body_at + self._length

    @property
    def has_body(self) -> bool:
        return 0 < self._body_at < len(self._received)

    @property
    def closes(self) -> bool:
        return b"connection: close" in self._received[: self._body_at].lower()

    def problem(self, is_whole: Callable[[bytes], bool]) -> str | None:
        if self._received[9:12] != b"200":
            return f"status {self._text(9, 12)}: {self._text(self._body_at, self._body_at + 300)}"
        body = bytes(self._received[self._body_at :])
        try:
            text = dechunk(body) if self._chunked else body
        except ValueError:
            return "malformed chunks"
        return None if is_whole(text) else f"not a whole answer, it ends with {text[-200:]!r}"

    def _read_head(self) -> bool:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._received[:end].lower() + b"\r\n"
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            self._length = int(head[at + 17 : head.index(b"\r\n", at + 17)])
        self._chunked = at < 0
        self._body_at = end + 4
        return True

    def _text(self, start: int, end: int) -> str:
        return self._received[start:end].decode("utf-8", "replace")


def dechunk(body: bytes) -> bytes:
    """Removes the chunked transfer coding; ValueError when it is broken."""
    parts: list[bytes] = []
    at = 0
    while True:
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end], 16)
        if not size:
            return b"".join(parts)
        start = line_end + 2
        at = start + size + 2
        parts.append(body[start : at - 2])


def _is_chat_reply(body: bytes) -> bool:
    return b"~end" in body and b'"completion_tokens"' in body and body.rstrip().endswith(b"}")


def _is_messages_reply(body: bytes) -> bool:
    return b"~end" in body and b'"output_tokens"' in body and body.rstrip().endswith(b"}")


def _is_chat_stream(body: bytes) -> bool:
    return body.count(b"~") == STREAM_CHUNKS and body.rstrip().endswith(b"data: [DONE]")


def _is_messages_stream(body: bytes) -> bool:
    return body.count(b"~") == STREAM_CHUNKS and b"event: message_stop" in body[-120:]


CHECKS: Final[dict[str, Callable[[bytes], bool]]] = {
    "chat reply": _is_chat_reply,
    "chat stream": _is_chat_stream,
    "messages reply": _is_messages_reply,
    "messages stream": _is_messages_stream,
}
