"""Whether the other end of a link lives: PING at intervals, silence counted.

Owns the one timer for that; refuses to know how a dead link is ended.
"""

import asyncio
from collections.abc import Callable

from services.link.options import LinkOptions


class Liveness:
    """Set `silent_ticks` to 0 whenever something arrives.

    Silence is counted in own ticks, not read off a clock: a process that was itself stopped does not hold its peers
    for dead.
    """

    __slots__ = ("_handle", "_loop", "_on_dead", "_options", "_send_ping", "silent_ticks")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: LinkOptions,
        send_ping: Callable[[], object],
        on_dead: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._options = options
        self._send_ping = send_ping
        self._on_dead = on_dead
        self._handle = loop.call_later(options.ping_every_s, self._tick)
        self.silent_ticks = 0

    def _tick(self) -> None:
        self.silent_ticks += 1
        if self.silent_ticks * self._options.ping_every_s >= self._options.dead_after_s:
            self._on_dead()
            return
        self._send_ping()
        self._handle = self._loop.call_later(self._options.ping_every_s, self._tick)

    def stop(self) -> None:
        """No more pings."""
        self._handle.cancel()
