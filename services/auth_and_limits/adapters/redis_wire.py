"""One connection to Redis: commands of a turn of the event loop leave in one write, answers come back in order.

Owns packing, order and patience; refuses to know what is asked, and to ask twice.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

import hiredis

from services.auth_and_limits.adapters.redis_url import Node, RedisNodes
from services.runtime.errors import StoreUnavailableError

_SECOND_LOOK_S = 0.005
_RETRY_IN = timedelta(seconds=1)
Argument = str | bytes | int
_pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]  # any length will do


def pack(command: tuple[Argument, ...]) -> bytes:
    """A command as it travels."""
    return _pack(command)


def away() -> StoreUnavailableError:
    """What callers are told while Redis is not there, or too slow to be of use."""
    return StoreUnavailableError("the hold store does not answer", retry_in=_RETRY_IN)


class Wire(asyncio.Protocol):
    """A connection. Once an answer is overdue it is given up as a whole: what was asked may still happen there."""

    def __init__(self, patience_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience_s = patience_s
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return not self.closed.done()

    def send(self, packed: bytes) -> "asyncio.Future[Any]":
        """Sends a command with the others of this turn. Its answer may be a `hiredis.ReplyError`, as a value."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self.closed.done():
            answer.set_exception(away())
            answer.exception()  # nobody need listen
            return answer
        self._waiting.append((answer, self._loop.time() + self._patience_s))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._look, False)
        return answer

    def abort(self) -> None:
        """Gives the connection up; whoever waits is told at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    # ---- called by the event loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                answer, _ = waiting.popleft()
                if not answer.done():
                    answer.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._end()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and self.is_open:
            self._transport.write(b"".join(out))

    def _look(self, is_second: bool) -> None:
        """Ends the connection if the oldest answer is overdue, also at a second look.

        When this process itself was held up, the answer may be here already and not read yet.
        """
        self._timer = None
        if not self._waiting or self.closed.done():
            return
        left_s = self._waiting[0][1] - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look, False)
        elif is_second:
            self.abort()
        else:
            self._timer = self._loop.call_later(_SECOND_LOOK_S, self._look, True)

    def _end(self) -> None:
        if self.closed.done():
            return
        self.closed.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, deque()
        for answer, _ in waiting:
            if not answer.done():
                answer.set_exception(away())
                answer.exception()  # whoever asked may have left


async def connect(node: Node, nodes: RedisNodes, patience_s: float) -> Wire:
    """An open connection, logged in. Raises OSError, TimeoutError or StoreUnavailableError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(max(patience_s, 1.0)):
        if node.path:
            _, wire = await loop.create_unix_connection(lambda: Wire(patience_s), node.path)
        else:
            tls = True if nodes.has_tls else None
            _, wire = await loop.create_connection(lambda: Wire(patience_s), node.host, node.port, ssl=tls)
    hello: list[Sequence[Argument]] = []
    if nodes.password:
        hello.append(("AUTH", nodes.username, nodes.password) if nodes.username else ("AUTH", nodes.password))
    if nodes.database:
        hello.append(("SELECT", nodes.database))
    try:
        await ask(wire, hello)
    except BaseException:
        wire.abort()
        raise
    return wire


async def ask(wire: Wire, commands: Sequence[Sequence[Argument]]) -> list[Any]:
    """Answers to plain commands, sent together. Raises StoreUnavailableError for an error among them."""
    answers = [await answer for answer in [wire.send(pack(tuple(command))) for command in commands]]
    for answer in answers:
        if isinstance(answer, hiredis.ReplyError):
            raise away() from answer
    return answers
