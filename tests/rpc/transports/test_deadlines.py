"""Deadlines behind one timer: never early, in order, and gone when discarded.

Owns the facts of `Deadlines`; calls take no part.
"""

import asyncio

from services.link.deadlines import Deadlines


class Moment:
    """Notes when it expired."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.expired_at: float | None = None
        self.expired = asyncio.Event()

    def expire(self) -> None:
        assert self.expired_at is None
        self.expired_at = asyncio.get_running_loop().time()
        self.expired.set()


async def test_each_expires_once_never_early_and_in_order() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    now = loop.time()
    moments = [Moment(now + delay) for delay in (0.3, 0.05, 0.0, 0.1, 0.1001, 0.05, 0.2)]
    for moment in moments:
        deadlines.add(moment.at, moment)

    async with asyncio.timeout(5):
        for moment in moments:
            await moment.expired.wait()

    # The loop's own clock moves in milliseconds, and deadlines share slots of 1/64 s.
    assert all((moment.expired_at or 0) >= moment.at - 0.002 for moment in moments)
    in_order = sorted(moments, key=lambda moment: moment.at)
    assert [moment.expired_at for moment in in_order] == sorted(moment.expired_at or 0 for moment in moments)


async def test_a_discarded_one_does_not_expire_and_an_expired_one_can_be_discarded() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    kept, discarded = Moment(loop.time() + 0.03), Moment(loop.time() + 0.03)
    slot = deadlines.add(kept.at, kept)
    deadlines.discard(deadlines.add(discarded.at, discarded), discarded)
    async with asyncio.timeout(5):
        await kept.expired.wait()
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
