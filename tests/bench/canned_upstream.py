"""An OpenAI-compatible provider whose answers are prebuilt bytes, in a process of its own.

Owns being too cheap to matter in a measurement; refuses to parse JSON, check keys or vary its answers."""

import asyncio
import json
import sys
from typing import Final, cast

import uvloop

STREAM_CHUNKS: Final = 64
PACED_MARK: Final = b"@paced"
"""A prompt that holds this mark is answered one chunk per `PACE_SECONDS`; it survives every gateway as plain text."""
PACE_SECONDS: Final = 0.005
"""200 chunks a second: about the speed at which a fast hosted model speaks."""

USAGE: Final = {"prompt_tokens": 25, "completion_tokens": STREAM_CHUNKS, "total_tokens": 25 + STREAM_CHUNKS}
_ENVELOPE: Final = {"id": "chatcmpl-canned", "created": 1_700_000_000, "model": "canned"}


def _response(body: bytes, content_type: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (content_type, len(body))
    return head + body


def _small_reply() -> bytes:
    message = {"role": "assistant", "content": "A short canned answer, the same for everyone who asks. ~end"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return _response(
        json.dumps({**_ENVELOPE, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
    )


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**_ENVELOPE, "object": "chat.completion.chunk", "choices": [choice]}


def _http_chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _stream_pieces() -> tuple[bytes, ...]:
    """One write each: the head with the role, 64 pieces of text, and the ending (reason, usage, DONE) in one."""

    def event(chunk: dict[str, object]) -> bytes:
        return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"

    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    first = head + _http_chunk(event(_chunk({"role": "assistant", "content": ""})))
    texts = [_http_chunk(event(_chunk({"content": f"~{number:02d} "}))) for number in range(STREAM_CHUNKS)]
    usage: dict[str, object] = {**_ENVELOPE, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
    last = _http_chunk(event(_chunk({}, "stop"))) + _http_chunk(event(usage)) + _http_chunk(b"data: [DONE]\n\n")
    return first, *texts, last + b"0\r\n\r\n"


REPLY: Final = _small_reply()
PIECES: Final = _stream_pieces()


class Served:
    """How many calls were answered: the run compares it with what the load generator received."""

    replies: int = 0
    streams: int = 0

    def response(self) -> bytes:
        return _response(json.dumps({"replies": self.replies, "streams": self.streams}).encode())


class CannedProtocol(asyncio.Protocol):
    """One keep-alive connection; requests are taken one after the other."""

    def __init__(self, served: Served, loop: asyncio.AbstractEventLoop) -> None:
        self._served = served
        self._loop = loop
        self._buffer = b""
        self._next_piece = 0
        self._paced = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        head_end = buffer.find(b"\r\n\r\n") + 4
        if head_end < 4 or not _is_whole(buffer, head_end):
            self._buffer = buffer
            return
        self._buffer = b""
        if buffer.startswith(b"POST"):
            self._answer(buffer)
        else:
            self._transport.write(self._served.response())

    def _answer(self, request: bytes) -> None:
        if b'"stream":true' in request or b'"stream": true' in request:
            self._served.streams += 1
            self._paced = PACED_MARK in request
            self._next_piece = 0
            self._send_piece()
        else:
            self._served.replies += 1
            self._transport.write(REPLY)

    def _send_piece(self) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(PIECES[self._next_piece])
        self._next_piece += 1
        if self._next_piece == len(PIECES):
            return
        if self._paced:
            self._loop.call_later(PACE_SECONDS, self._send_piece)
        else:
            # One piece per loop turn: each leaves in a write of its own, as a provider's chunks do.
            self._loop.call_soon(self._send_piece)


def _is_whole(buffer: bytes, head_end: int) -> bool:
    head = buffer[:head_end].lower()
    at = head.find(b"content-length:")
    if at >= 0:
        length = int(head[at + 15 : head.index(b"\r\n", at)])
        return len(buffer) >= head_end + length
    if b"transfer-encoding: chunked" in head:
        return buffer.endswith(b"0\r\n\r\n")
    return True


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    served = Served()
    server = await loop.create_server(lambda: CannedProtocol(served, loop), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
