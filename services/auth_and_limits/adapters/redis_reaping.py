"""Which accounts have live holds, and whose leases have run out: looked for by one process at a time.

Owns the list of accounts beside the accounts' own keys; refuses to end a hold.

The list is outside the accounts' hash slots, so it is written beside the decisions and not by them: an account is in it
before its first hold is made, and leaves it long after its last one ended.
"""

import math
import time
from collections.abc import Callable, Sequence

from services.auth_and_limits.adapters.redis_link import RedisLink
from services.auth_and_limits.adapters.redis_records import key_of

_KEY = "mws:accounts"
_LOCK = "mws:reaper"
_LOCK_MS = 4_000
_NOTED_AGAIN_AFTER_S = 10.0
_FORGOTTEN_AFTER_US = 60_000_000
_ACCOUNTS_PER_LOOK = 2_000
_MOST_NOTED = 100_000


class LiveAccounts:
    """The list, as one process sees it."""

    def __init__(self, link: RedisLink, name: str, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._name = name
        self._now_s = now_s
        self._noted_at_s: dict[str, float] = {}
        self._account_of: dict[str, str] = {}
        self._next = 0
        self._counted = 0
        self.live_holds = 0

    def forget(self) -> None:
        """Redis may have forgotten: every account is noted anew."""
        self._noted_at_s.clear()

    def note(self, account_id: str) -> None:
        """The account is about to have a hold. Sent before it, on the same connection."""
        now_s = self._now_s()
        if now_s < self._noted_at_s.get(account_id, -math.inf) + _NOTED_AGAIN_AFTER_S:
            return
        if len(self._noted_at_s) >= _MOST_NOTED:
            self._noted_at_s.clear()
        self._link.send("ZADD", _KEY, self._link.redis_us(), account_id)
        self._noted_at_s[account_id] = now_s

    def account_of(self, call_id: str) -> str:
        """The account of a call that `expired` has just named."""
        return self._account_of.get(call_id, "")

    async def expired(self, at_most: int) -> Sequence[str]:
        """Calls whose lease has run out, of the next accounts in turn; none in all processes but one."""
        self._account_of.clear()
        mine = await self._link.run("reaper", _LOCK, self._name, _LOCK_MS)
        if not mine[2]:
            self.live_holds = 0
            return ()
        last = self._next + _ACCOUNTS_PER_LOOK - 1
        accounts = [account.decode() for account in await self._link.ask("ZRANGE", _KEY, self._next, last)]
        looks = await self._link.run_all([("lapsed", key_of(account), at_most) for account in accounts])
        idle = []
        for account, look in zip(accounts, looks, strict=True):
            _, _, live_holds, calls = look
            self._counted += live_holds
            if not live_holds:
                idle.append(account)
            for call in calls[: at_most - len(self._account_of)]:
                self._account_of[call.decode()] = account
        if idle:
            await self._link.run("retire", _KEY, self._link.redis_us() - _FORGOTTEN_AFTER_US, *idle)
        self._turn(len(accounts))
        return list(self._account_of)

    def _turn(self, count: int) -> None:
        if count == _ACCOUNTS_PER_LOOK:
            self._next += count
        else:
            self._next, self.live_holds, self._counted = 0, self._counted, 0
