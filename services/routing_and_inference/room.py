"""What an upstream lets us do at once and per minute, and the queue before one that is at its limit.

Pure but for the futures of the queue: owns budgets and fairness; refuses to know upstreams and why a call wants one.
"""

import asyncio
from collections import deque

_MINUTE_S = 60.0


class Budget:
    """A bucket that a minute fills: full at the start, and never more than a minute's worth."""

    __slots__ = ("_at_s", "_left", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute  # 0: no limit
        self._left = float(per_minute)
        self._at_s = 0.0

    def wait_s(self, amount: int, now_s: float) -> float:
        """How long until so much is there; 0: now. More than a minute's worth passes when the bucket is full."""
        if not self.per_minute:
            return 0.0
        missing = min(amount, self.per_minute) - self._refilled(now_s)
        return max(0.0, missing * _MINUTE_S / self.per_minute)

    def take(self, amount: int, now_s: float) -> None:
        """Takes it, even if it is not there."""
        if self.per_minute:
            self._left, self._at_s = self._refilled(now_s) - amount, now_s

    def _refilled(self, now_s: float) -> float:
        return min(self.per_minute, self._left + (now_s - self._at_s) * self.per_minute / _MINUTE_S)


class FairQueue:
    """Calls that wait for room, one account after the other whoever has how many waiting."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of the accounts' next turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        """Nobody may wait any more."""
        return self._count >= self._longest

    async def wait(self, account_id: str, timeout_s: float) -> bool:
        """Waits for a turn. False: it has not come in time."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(account_id, deque()).append(turn)
        self._count += 1
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError:
            return False
        finally:
            if not turn.done() or turn.cancelled():
                turn.cancel()
            self._drop(account_id, turn)
        return True

    def wake(self) -> None:
        """There is room for one more."""
        for account_id in list(self._waiting):
            turns = self._waiting.pop(account_id)
            turn = turns.popleft()
            self._count -= 1
            if turns:
                self._waiting[account_id] = turns  # at the end: the other accounts come first
            if not turn.done():
                turn.set_result(None)
                return

    def _drop(self, account_id: str, turn: "asyncio.Future[None]") -> None:
        turns = self._waiting.get(account_id)
        if turns is None or turn not in turns:
            return
        turns.remove(turn)
        self._count -= 1
        if not turns:
            del self._waiting[account_id]
