"""Several processes' worth of hold stores on one Redis, in one test, each with a clock of its own.

Owns opening and closing them; refuses assertions.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from services.auth_and_limits.adapters.redis_holds import RedisHolds
from services.auth_and_limits.adapters.redis_link import RedisLink
from services.auth_and_limits.adapters.redis_scripts import read_scripts
from services.auth_and_limits.adapters.redis_url import parse_redis_url
from services.auth_and_limits.ports import BalanceSource
from services.auth_and_limits.records import Balance
from services.runtime.errors import ServiceUnavailableError
from tests.contract.auth_and_limits.hold_store import PLANS

CLOCKS_OFF_BY_S = (0, 5, -5)


class Ledger:
    """Metering's side: what accounts have. Can be away."""

    def __init__(self) -> None:
        self.of: dict[str, Balance] = {}
        self.asked = 0
        self.is_away = False

    async def balances(self, account_ids: Sequence[str]) -> Sequence[Balance]:
        self.asked += 1
        if self.is_away:
            raise ServiceUnavailableError("metering is away")
        return [self.of[account_id] for account_id in account_ids if account_id in self.of]


class Options:
    """How replicas are opened."""

    def __init__(
        self,
        *,
        time_text: str | None = None,
        balances: BalanceSource | None = None,
        learning_s: float = 0.0,
        patience_s: float = 10.0,
    ) -> None:
        self.scripts = read_scripts(time_text)
        self.balances = balances
        self.learning_s = learning_s
        self.patience_s = patience_s


@asynccontextmanager
async def replicas(url: str, count: int, options: Options | None = None) -> AsyncIterator[list[RedisHolds]]:
    """Open stores."""
    chosen = options or Options()
    async with AsyncExitStack() as stack:
        opened = []
        for index in range(count):
            off_us = CLOCKS_OFF_BY_S[index % 3] * 1_000_000
            link = RedisLink(
                parse_redis_url(url),
                chosen.scripts,
                patience_s=chosen.patience_s,
                now_us=lambda off_us=off_us: time.monotonic_ns() // 1000 + off_us,  # type: ignore[misc]
            )
            holds = RedisHolds(
                link, PLANS, name=f"auth-{index}", balances=chosen.balances, learning_s=chosen.learning_s
            )
            await holds.open()
            stack.push_async_callback(holds.close)
            opened.append(holds)
        yield opened
