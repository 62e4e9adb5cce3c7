"""A proxy between programs that know nothing of us and a gateway: passes bytes on, and holds every answer to the rules.

Owns reading HTTP/1.1 off the wire, a request at a time per connection, as SDKs send them; the rules are in `rule_book`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

from tests.rule_book import header_problems, stream_problems

_PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Head:
    """A request's or an answer's first lines, as they came and as they are read."""

    raw: bytes
    first: list[str]
    headers: dict[str, str]

    @property
    def is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "") == "chunked"


class CheckingProxy:
    """Use as a context manager; raises AssertionError at its end if any answer broke a rule."""

    def __init__(self, base_url: str) -> None:
        url = urlsplit(base_url)
        self._target = (str(url.hostname), int(url.port or 80))
        self._loop = asyncio.new_event_loop()
        self._ready, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self._stop = asyncio.Event()
        self.base_url = ""
        self.answers = 0
        self.streams = 0
        self.problems: list[str] = []

    def __enter__(self) -> "CheckingProxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        if kind is None:
            assert not self.problems, self.problems

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        try:
            while (request := await _head_of(reader)) is not None:
                there_writer.write(request.raw)
                async for piece in _body_of(reader, request, is_answer=False):
                    there_writer.write(piece)
                    await there_writer.drain()
                await self._pass_answer(request, there_reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the program left; what it has seen was checked
        finally:
            writer.close()
            there_writer.close()

    async def _pass_answer(self, request: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path = request.first[0], request.first[1]
        answer = await _head_of(reader)
        assert answer is not None
        status = int(answer.first[1])
        self.answers += 1
        self._note(method, path, header_problems(path, status, answer.headers))
        writer.write(answer.raw)
        if method == "HEAD":
            return
        is_stream, body = answer.headers.get("content-type", "").startswith("text/event-stream"), bytearray()
        try:
            async for piece in _body_of(reader, answer, is_answer=True):
                writer.write(piece)
                await writer.drain()
                if is_stream:
                    body += piece
        except asyncio.IncompleteReadError:
            self._note(method, path, ["an answer that was cut"])
            raise
        if is_stream:
            self.streams += 1
            self._note(method, path, stream_problems(_unchunked(bytes(body))))

    def _note(self, method: str, path: str, found: list[str]) -> None:
        self.problems += [f"{method} {path}: {problem}" for problem in found]


async def _head_of(reader: asyncio.StreamReader) -> _Head | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return _Head(raw, first.split(" ", 2), {name.strip().lower(): value.strip() for name, _, value in fields})


async def _body_of(reader: asyncio.StreamReader, head: _Head, *, is_answer: bool) -> AsyncIterator[bytes]:
    """The body's bytes as they come, chunks with their framing."""
    if head.is_chunked:
        while True:
            size = await reader.readuntil(b"\r\n")
            yield size + await reader.readexactly(int(size, 16) + 2)
            if int(size, 16) == 0:
                return
    left = int(head.headers.get("content-length", "0"))
    assert left or not is_answer or "content-length" in head.headers or head.first[1] in ("204", "304")
    while left:
        piece = await reader.read(min(left, _PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece


def _unchunked(body: bytes) -> bytes:
    pieces, at = [], 0
    while at < len(body):
        end = body.index(b"\r\n", at)
        size = int(body[at:end], 16)
        pieces.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(pieces)
