"""The one task that writes on a link, in each direction: what a turn of the loop produced leaves as one wire message.

Owns waking and writing; refuses to know what is in a wire message.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from services.link.frames import Batch, Outbox


class Pump:
    """Writes what an outbox holds until it is told to finish."""

    __slots__ = ("_finishing", "_loop", "_waiter", "outbox")

    def __init__(self, loop: asyncio.AbstractEventLoop, new_batch: Callable[[], Batch]) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._finishing = False
        self.outbox = Outbox(new_batch, self._wake)

    async def run(self, write: Callable[[Any], Awaitable[object]]) -> None:
        """Writes until the outbox is empty after `finish`."""
        outbox = self.outbox
        while True:
            batch = outbox.take()
            if batch is not None:
                await write(batch)
            elif self._finishing:
                return
            else:
                self._waiter = self._loop.create_future()
                await self._waiter

    def finish(self) -> None:
        """Ends `run` once everything is written."""
        self._finishing = True
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
