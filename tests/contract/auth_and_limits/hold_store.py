"""What the suites of the hold store share: a store on a virtual clock, and short ways to ask it.

Owns builders; refuses assertions.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import redis

from services.auth_and_limits.adapters.embedded_holds import EmbeddedHolds
from services.auth_and_limits.adapters.journal_file import JournalFile
from services.auth_and_limits.adapters.redis_holds import RedisHolds
from services.auth_and_limits.adapters.redis_link import RedisLink
from services.auth_and_limits.adapters.redis_records import key_of
from services.auth_and_limits.adapters.redis_scripts import read_scripts
from services.auth_and_limits.adapters.redis_url import parse_redis_url
from services.auth_and_limits.holds import Hold
from services.auth_and_limits.ports import BalanceSource, HoldStore
from services.auth_and_limits.records import Account, Admitted, Ask, Balance, Key, Payer, Refused, Throttle, Verdict
from services.auth_and_limits.tiers import Ceilings, Overrides, Plan, PlanBook, Tier
from services.runtime.ids import new_id
from tests.redis_server import RedisServer

StoreT = TypeVar("StoreT", bound=HoldStore)
USD = 1_000_000_000
S = 1_000_000  # µs
ACCOUNT_ID = "01920000-0000-7000-8000-00000000000a"
PLANS = PlanBook(
    "plain",
    {
        "plain": Plan(
            "plain",
            False,
            (
                Tier(0, Ceilings(1_000, 100_000, 50, "start")),
                Tier(25 * USD, Ceilings(2_000, 200_000, 100, "next")),
            ),
        )
    },
)


class Clock:
    """Time as a value: monotonic and wall time move together until somebody sets the wall clock."""

    def __init__(self) -> None:
        self.us = 5_000_000_000
        self.unix_ms = 1_790_000_000_000

    def advance_us(self, us: int) -> None:
        self.us += us
        self.unix_ms += us // 1000

    def now_us(self) -> int:
        return self.us

    def now_unix_ms(self) -> int:
        return self.unix_ms


class Bench(Generic[StoreT]):
    """A hold store, its clock, and an account."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.account = Account(ACCOUNT_ID, "acme", "plain")
        self.seq = 0
        self.holds: StoreT

    async def open(self) -> StoreT:
        """Opens the store on what is there."""
        raise NotImplementedError

    async def close(self) -> None:
        """Closes it."""
        raise NotImplementedError

    async def crash(self) -> StoreT:
        """The next process, on what is left."""
        raise NotImplementedError

    async def held(self) -> tuple[int, int]:
        """Money held and slots taken, as the store counts them."""
        raise NotImplementedError

    async def fund(self, nano_usd: int, *closed: str, paid: int = 0) -> None:
        """Metering tells of a balance, and of holds whose outcome is in it."""
        self.seq += 1
        await self.holds.change_balances([Balance(self.account.account_id, self.seq, nano_usd, paid, closed)])

    async def admit(self, asked: Ask, payer: Payer | None = None) -> Verdict:
        return await self.holds.admit(asked, payer or Payer(self.account))

    async def admitted(self, asked: Ask, payer: Payer | None = None) -> Hold:
        verdict = await self.admit(asked, payer)
        assert isinstance(verdict, Admitted), verdict
        return verdict.hold

    async def refusal(self, asked: Ask, payer: Payer | None = None) -> Refused:
        verdict = await self.admit(asked, payer)
        assert isinstance(verdict, Refused), verdict
        return verdict


class EmbeddedBench(Bench[EmbeddedHolds]):
    """The embedded store in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.open_file: Callable[[Path], JournalFile] = JournalFile
        self.slow_s = 30.0  # a busy disk is no fault; tests of a slow store set what they mean
        self._crashes = 0

    async def open(self) -> EmbeddedHolds:
        self.holds = EmbeddedHolds(
            self.folder / "holds.sqlite3",
            PLANS,
            now_us=self.clock.now_us,
            now_unix_ms=self.clock.now_unix_ms,
            open_file=self.open_file,
            slow_s=self.slow_s,
        )
        await self.holds.open()
        return self.holds

    async def close(self) -> None:
        await self.holds.close()

    async def crash(self) -> EmbeddedHolds:
        """The next process finds the files as they are on disk now; the old one never writes to them again."""
        self._crashes += 1
        left = self.folder.with_name(f"{self.folder.name.partition('-after')[0]}-after{self._crashes}")
        shutil.copytree(self.folder, left)
        await self.holds.close()
        shutil.rmtree(self.folder)
        self.folder = left
        return await self.open()

    async def held(self) -> tuple[int, int]:
        purse = self.holds.state.purse(self.account.account_id)
        return purse.held_nano_usd, purse.running


TEST_TIME = """
local function now_us()
  return tonumber(redis.call('GET', 'test:now'))
end
"""


class RedisClock(Clock):
    """The same, as the scripts of a test read it."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self._client = client
        self.advance_us(0)

    def advance_us(self, us: int) -> None:
        super().advance_us(us)
        self._client.set("test:now", self.us)


class RedisBench(Bench[RedisHolds]):
    """A store in Redis, whose scripts read a clock of the test's."""

    def __init__(self, server: RedisServer, *, balances: BalanceSource | None = None, learning_s: float = 0.0) -> None:
        super().__init__()
        self.server = server
        self.client = server.client()
        self.client.flushall()
        self.clock = RedisClock(self.client)
        self._balances = balances
        self._learning_s = learning_s

    async def open(self) -> RedisHolds:
        link = RedisLink(parse_redis_url(self.server.url), read_scripts(TEST_TIME), patience_s=30.0)
        self.holds = RedisHolds(link, PLANS, name="auth-0", balances=self._balances, learning_s=self._learning_s)
        await self.holds.open()
        return self.holds

    async def close(self) -> None:
        await self.holds.close()
        self.client.close()

    async def crash(self) -> RedisHolds:
        """The next process finds what the last one left in Redis."""
        await self.holds.close()
        return await self.open()

    async def held(self) -> tuple[int, int]:
        held, running = self.client.hmget(key_of(self.account.account_id), "held", "run")
        return int(held or 0), int(running or 0)


def ask(
    amount: int = 0, tokens: int = 0, *, call_id: str = "", run_id: str = "", key: str = "", body: bytes = b""
) -> Ask:
    """A question for a hold; ids are minted unless given."""
    return Ask(call_id or new_id(), run_id or new_id(), "runner/1", amount, tokens, "book", key, body)


def with_ceilings(
    account: Account, rpm: int | None = None, tpm: int | None = None, calls: int | None = None
) -> Account:
    """The account under ceilings set by hand."""
    return Account(account.account_id, account.name, account.plan, Overrides(rpm, tpm, calls))


def throttled(account: Account, rpm: int | None = None, tpm: int | None = None) -> Payer:
    """The account by a key with a throttle."""
    return Payer(account, Key("key-1", account.account_id, "", "mws_live_abcd", Throttle(rpm, tpm)))
