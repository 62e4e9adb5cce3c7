"""A provider in its own process: speaks OpenAI Chat Completions at the pace that the prompt asks for, and keeps a log.

Owns what it was asked and what it answered, to the token; knows nothing of the gateway. `Provider` runs it for a test.
The prompt steers it: `chunks=20 pace_ms=50` (how many words, how far apart), `cut_after=3` (break the connection),
`status=503` (refuse), `delay_ms=500` (before the head).
"""

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, cast

import uvloop

_DIRECTIVE = re.compile(rb"\b(chunks|pace_ms|cut_after|status|delay_ms|input)=(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([^\r]+)", re.IGNORECASE)
DEFAULT_CHUNKS = 8
_SEARCHED_BYTES = 1 << 16


def words(count: int) -> str:
    """The text that an answer of `count` chunks has."""
    return "".join(f"w{number} " for number in range(count))


@dataclass(slots=True)
class Served:
    """One request that reached the provider. Tokens are those that it reports (or would have reported)."""

    request_id: str
    input_tokens: int
    output_tokens: int
    status: int = 200
    is_stream: bool = False
    sent_chunks: int = 0
    finished: bool = False
    left: bool = False
    """The gateway closed the connection before the answer was complete."""

    @property
    def call_id(self) -> str:
        """The gateway's id of the call, without the attempt."""
        return self.request_id.rpartition(".")[0]


class _Connection(asyncio.Protocol):
    def __init__(self, log: list[Served]) -> None:
        self._log = log
        self._buffer = bytearray()
        self._needed = 0  # bytes of a request whose length is known
        self._served: Served | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._served is not None and not self._served.finished:
            self._served.left = True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < self._needed:
            return
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[: end + 2])
            found = _LENGTH.search(head)
            self._needed = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < self._needed:
                return
            body = self._body(end + 4, self._needed)
            del self._buffer[: self._needed]
            self._needed = 0
            self._answer(head, body)

    def _body(self, start: int, stop: int) -> bytes:
        """What is asked for stands at either end of a large body."""
        if stop - start <= 2 * _SEARCHED_BYTES:
            return bytes(self._buffer[start:stop])
        return bytes(self._buffer[start : start + _SEARCHED_BYTES] + self._buffer[stop - _SEARCHED_BYTES : stop])

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET "):
            self._write_json(200, json.dumps([asdict(served) for served in self._log]).encode())
            return
        asked = {name.decode(): int(value) for name, value in _DIRECTIVE.findall(body)}
        found = _REQUEST_ID.search(head)
        number = len(self._log)
        chunks = asked.get("chunks", DEFAULT_CHUNKS)
        served = Served((found[1] if found else b"").decode(), asked.get("input", 10 + number % 89), chunks)
        served.is_stream = b'"stream":true' in body.replace(b'": ', b'":')
        served.status = asked.get("status", 200)
        self._log.append(served)
        self._served = served
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(asked.get("delay_ms", 0) / 1000, self._begin, served, asked)

    def _begin(self, served: Served, asked: dict[str, int]) -> None:
        if served.status != 200:
            served.finished = True
            self._write_json(served.status, b'{"error":{"message":"scripted","type":"server_error"}}')
        elif not served.is_stream:
            served.finished = True
            served.sent_chunks = served.output_tokens
            self._write_json(200, _message(served))
        else:
            self._transport.write(_STREAM_HEAD + _chunk(served, {"role": "assistant", "content": ""}, None))
            self._next(served, asked.get("pace_ms", 0) / 1000, asked.get("cut_after"))

    def _next(self, served: Served, pace_s: float, cut_after: int | None) -> None:
        if self._transport.is_closing():
            return
        if cut_after is not None and served.sent_chunks >= cut_after:
            served.finished = True
            self._transport.close()
            return
        if served.sent_chunks < served.output_tokens:
            self._transport.write(_chunk(served, {"content": f"w{served.sent_chunks} "}, None))
            served.sent_chunks += 1
            self._timer = asyncio.get_running_loop().call_later(pace_s, self._next, served, pace_s, cut_after)
            return
        usage = {"choices": [], "usage": _usage(served)}
        self._transport.write(_chunk(served, {}, "stop") + _framed(_data({**_ENVELOPE, **usage})))
        self._transport.write(_framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        served.finished = True

    def _write_json(self, status: int, body: bytes) -> None:
        head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_ENVELOPE = {"id": "chatcmpl-p", "object": "chat.completion.chunk", "created": 1, "model": "paced"}


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _chunk(served: Served, delta: dict[str, str], finish: str | None) -> bytes:
    return _framed(_data({**_ENVELOPE, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))


def _usage(served: Served) -> dict[str, int]:
    total = served.input_tokens + served.output_tokens
    return {"prompt_tokens": served.input_tokens, "completion_tokens": served.output_tokens, "total_tokens": total}


def _message(served: Served) -> bytes:
    message = {"role": "assistant", "content": words(served.output_tokens)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {**_ENVELOPE, "object": "chat.completion", "choices": [choice], "usage": _usage(served)}
    return json.dumps(body).encode()


class Provider:
    """Runs the provider; use as a context manager."""

    def __enter__(self) -> "Provider":
        self._process = subprocess.Popen([sys.executable, "-m", "tests.provider"], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def url(self) -> str:
        """What `--upstream` takes."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def options(self) -> tuple[str, ...]:
        """Options of `mws up` that make this the only upstream."""
        return "--upstream", self.url, "--upstream-dialect", "openai"

    def log(self) -> list[Served]:
        """Every request so far, oldest first."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/log", timeout=10) as answer:
            return [Served(**row) for row in json.load(answer)]

    def served(self, call_id: str) -> list[Served]:
        """The requests of one call."""
        return [served for served in self.log() if served.call_id == call_id]


async def _main() -> None:
    log: list[Served] = []
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(log), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
