"""The deadlines of many calls behind one timer of the loop.

Owns when a deadline counts as passed (never early; late by up to a 64th of a second, by up to a second when it was set
long before); refuses to know what then happens.
"""

import asyncio
import heapq
from typing import Protocol

_SLOTS_PER_S = 64
_FAR_SLOTS = 16 * _SLOTS_PER_S
"""From here on slots are a second wide: a slot lives until its time comes, and `Generate` sets deadlines of minutes."""


class Expiring(Protocol):
    """Something with a deadline."""

    def expire(self) -> None:
        """The deadline passed."""


class Deadlines:
    """Most deadlines are met, so adding and discarding one costs a set operation; only slots have a timer."""

    __slots__ = ("_handle", "_loop", "_next_slot", "_order", "_slots")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, set[Expiring]] = {}
        self._order: list[int] = []
        self._next_slot = 0  # the slot that the timer is set for; 0: none
        self._handle: asyncio.TimerHandle | None = None

    def add(self, at: float, item: Expiring) -> int:
        """Calls `item.expire()` once loop time has reached `at`. Returns what `discard` wants."""
        slot = int(at * _SLOTS_PER_S) + 1
        if slot > self._loop.time() * _SLOTS_PER_S + _FAR_SLOTS:
            slot += -slot % _SLOTS_PER_S
        items = self._slots.get(slot)
        if items is not None:
            items.add(item)
            return slot
        self._slots[slot] = {item}
        heapq.heappush(self._order, slot)
        if not self._next_slot or slot < self._next_slot:
            self._arm(slot)
        return slot

    def discard(self, slot: int, item: Expiring) -> None:
        """Forgets an item; harmless when its time has come meanwhile."""
        items = self._slots.get(slot)
        if items is not None:
            items.discard(item)

    def close(self) -> None:
        """Forgets everything."""
        if self._handle is not None:
            self._handle.cancel()
        self._slots.clear()
        self._order.clear()
        self._next_slot = 0

    def _arm(self, slot: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._next_slot = slot
        self._handle = self._loop.call_at(slot / _SLOTS_PER_S, self._fire)

    def _fire(self) -> None:
        self._next_slot = 0
        self._handle = None
        due = self._loop.time() * _SLOTS_PER_S + 0.5  # the loop's clock may have been rounded down
        expired: list[Expiring] = []
        while self._order and (self._order[0] <= due or not self._slots[self._order[0]]):
            expired.extend(self._slots.pop(heapq.heappop(self._order)))
        if self._order:
            self._arm(self._order[0])
        for item in expired:
            item.expire()
