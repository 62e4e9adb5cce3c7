"""Deadlines behind one timer: never early, hardly late, and gone when discarded.

Owns the facts of `Deadlines`; calls take no part.
"""

import asyncio

from services.link.deadlines import Deadlines


class Moment:
    """Notes when it expired."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.expired_at: float | None = None

    def expire(self) -> None:
        assert self.expired_at is None
        self.expired_at = asyncio.get_running_loop().time()


async def test_each_expires_once_never_early_and_hardly_late() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    now = loop.time()
    moments = [Moment(now + delay) for delay in (0.3, 0.05, 0.0, 0.1, 0.1001, 0.05, 0.2)]
    for moment in moments:
        deadlines.add(moment.at, moment)
    last = asyncio.Event()
    loop.call_at(now + 0.4, last.set)
    await last.wait()
    assert all(moment.expired_at is not None for moment in moments)
    assert all(-0.002 <= (moment.expired_at or 0) - moment.at < 0.08 for moment in moments)


async def test_a_discarded_one_does_not_expire_and_an_expired_one_can_be_discarded() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    kept, discarded = Moment(loop.time() + 0.03), Moment(loop.time() + 0.03)
    slot = deadlines.add(kept.at, kept)
    deadlines.discard(deadlines.add(discarded.at, discarded), discarded)
    last = asyncio.Event()
    loop.call_later(0.1, last.set)
    await last.wait()
    deadlines.discard(slot, kept)
    assert kept.expired_at is not None
    assert discarded.expired_at is None


async def test_nothing_expires_after_close() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    moment = Moment(loop.time() + 0.02)
    deadlines.add(moment.at, moment)
    deadlines.close()
    last = asyncio.Event()
    loop.call_later(0.08, last.set)
    await last.wait()
    assert moment.expired_at is None
