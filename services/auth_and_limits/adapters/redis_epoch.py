"""Whether the shared store still remembers everything: its epoch, and how long a new one has been learning.

Owns that question; refuses to load anything.

A store that was wiped, restarted or replaced begins a new epoch. Nobody is admitted until it is as old as runners take
to renew their holds, and no balance of an older epoch is believed: metering is asked again.
"""

import time
from collections.abc import Callable
from datetime import timedelta

from services.auth_and_limits.adapters.redis_link import RedisLink
from services.runtime.errors import StoreUnavailableError
from services.runtime.ids import new_id

_KEY = "mws:epoch"


class Epoch:
    """The epoch as this process last heard of it."""

    def __init__(self, link: RedisLink, learning_s: float, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._learning_s = learning_s
        self._now_s = now_s
        self._run_id = ""
        self._settled_at_s = float("inf")
        self.name = b""

    async def begin(self, run_id: str) -> None:
        """Redis is up again: until it has said which epoch this is, nobody knows."""
        self._run_id, self._settled_at_s, self.name = run_id, float("inf"), b""
        await self.ask()

    async def ask(self) -> None:
        """Looks at the epoch; begins one where there is none, or where the server is not the one that it began with."""
        answer = await self._link.run("epoch", _KEY, new_id(), self._run_id)
        self.name = bytes(answer[2])
        self._settled_at_s = self._now_s() + self._learning_s - answer[3] / 1_000_000

    @property
    def is_settled(self) -> bool:
        """Whether everything that lives is known again."""
        return self._now_s() >= self._settled_at_s

    def check(self) -> None:
        """Raises StoreUnavailableError while the store still learns what is held."""
        left_s = self._settled_at_s - self._now_s()
        if left_s > 0:
            retry_in = timedelta(seconds=min(left_s, self._learning_s))
            raise StoreUnavailableError("the hold store was lost and learns what is held", retry_in=retry_in)
