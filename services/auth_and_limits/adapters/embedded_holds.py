"""The hold store of one machine: decisions in memory, made durable by the journal before anybody hears of them.

Owns the order of deciding, writing and answering; refuses to decide itself.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from services.auth_and_limits.adapters.balance_reading import BalanceReader
from services.auth_and_limits.adapters.journal import SLOW_S, HoldJournal
from services.auth_and_limits.adapters.journal_file import JournalFile, Recovered
from services.auth_and_limits.adapters.memory_records import Claim, Meters
from services.auth_and_limits.adapters.memory_state import MemoryState
from services.auth_and_limits.holds import LEASE_US, Hold, HoldState, first_call_id
from services.auth_and_limits.limits import Bucket, LimitsView
from services.auth_and_limits.ports import BalanceSource
from services.auth_and_limits.records import (
    Account,
    Admitted,
    Ask,
    Balance,
    Finished,
    Outcome,
    OutOfCredit,
    Payer,
    Verdict,
)
from services.auth_and_limits.tiers import Ceilings, PlanBook
from services.runtime.errors import GatewayError, HoldNotOpenError, NotFoundError, StoreUnavailableError

TOMBSTONE_MS = 3_600_000  # a call id is refused as too old long before
CLAIM_MS = 24 * 3_600_000
LEARNING_US = 6_000_000  # a renewal comes every 5 s, so by then every hold that lives is known again


def monotonic_us() -> int:
    """The one time source of embedded limits."""
    return time.monotonic_ns() // 1000


def unix_ms() -> int:
    """Wall time, for ids and leases that others name."""
    return time.time_ns() // 1_000_000


class EmbeddedHolds:
    """`ports.HoldStore` on process memory and a SQLite journal."""

    def __init__(
        self,
        path: Path,
        plans: PlanBook,
        *,
        now_us: Callable[[], int] = monotonic_us,
        now_unix_ms: Callable[[], int] = unix_ms,
        open_file: Callable[[Path], JournalFile] = JournalFile,
        slow_s: float = SLOW_S,
    ) -> None:
        self._is_new = not path.exists()
        self._reader: BalanceReader | None = None
        self._closed_until_us = 0
        self._now_us = now_us
        self._now_unix_ms = now_unix_ms
        self._unix_offset_us = now_unix_ms() * 1000 - now_us()
        self._waiting: dict[str, set[asyncio.Future[Hold]]] = {}
        self.state = MemoryState(plans, self._tell)
        opening = functools.partial(open_file, path)
        self._journal = HoldJournal(
            opening, self.state, now_us=now_us, unix_offset_us=self._unix_offset_us, slow_s=slow_s
        )

    async def open(self) -> None:
        """Reads the journal: holds, balances, buckets and idempotency keys are as they were."""
        self._restore(await self._journal.open())

    async def close(self) -> None:
        """Writes what is left."""
        if self._reader:
            await self._reader.close()
        await self._journal.close()

    def heal_from(self, balances: BalanceSource, *, has_accounts: bool) -> None:
        """From now on `balances` is asked what an account has of which the store knows nothing.

        A new journal beside old accounts means that holds were lost: nobody is admitted until runners renewed theirs.
        """
        self._reader = BalanceReader(balances)
        if self._is_new and has_accounts:
            self._closed_until_us = self._now_us() + LEARNING_US

    @property
    def is_healthy(self) -> bool:
        """Whether admissions can be kept at present."""
        return not self._journal.is_stuck

    @property
    def open_holds(self) -> int:
        """Holds of calls that run."""
        return self.state.open_holds

    async def admit(self, ask: Ask, payer: Payer) -> Verdict:
        self._journal.check()
        if self._closed_until_us:
            self._check_learnt()
        if self._reader and not self.state.purse(payer.account.account_id).is_known:
            await self._learn(self._reader, payer.account.account_id)
        verdict = self.state.admit(ask, payer, self._now_us())
        if not isinstance(verdict, Admitted):
            return verdict
        if not verdict.is_repeat:
            await self._journal.kept()
            return verdict
        # The first admission may still be on its way to the disk, and may yet fail.
        await self._journal.written()
        if self.state.holds.get(ask.call_id) is not verdict.hold:
            raise StoreUnavailableError("the first admission could not be kept")
        return verdict

    async def extend(self, call_id: str, run_id: str, amount_nano_usd: int, account_id: str = "") -> Hold | OutOfCredit:
        self._journal.check()
        extended = self.state.extend(call_id, run_id, amount_nano_usd)
        if isinstance(extended, OutOfCredit):
            return extended
        hold, raised_by = extended
        try:
            await self._journal.written()
        except StoreUnavailableError:
            self.state.undo_extend(hold, raised_by)
            raise
        return hold

    async def renew(self, runner: str, holds: Sequence[Hold]) -> Sequence[str]:
        self._journal.check()
        lost, gone = self._prolong(runner, holds)
        if not lost:
            return gone
        on_file = await self._journal.find([hold.call_id for hold in lost])
        buried = [hold.call_id for hold in lost if hold.call_id in on_file and not on_file[hold.call_id].is_live]
        missing = [hold for hold in lost if hold.call_id not in buried]
        # Looked up with an await: what is known by now is prolonged, only the rest is recreated.
        still_lost, gone_since = self._prolong(runner, missing)
        for hold in still_lost:
            self.state.recreate(runner, hold, self._now_us())
        await self._journal.written()
        return [*gone, *gone_since, *buried]

    async def finish(self, finished: Sequence[Finished]) -> None:
        self._journal.check()
        for item in finished:
            self.state.finish(item, self._now_us())
        await self._journal.written(is_urgent=False)

    async def void(self, call_id: str, run_id: str, account_id: str = "") -> None:
        self._journal.check()
        if not self.state.void(call_id, run_id, self._now_us()):
            on_file = (await self._journal.find([call_id])).get(call_id)
            if on_file is not None and (on_file.run_id != run_id or on_file.state is not HoldState.VOIDED):
                raise HoldNotOpenError("the hold is not open for this run")
        await self._journal.written()

    async def limits(self, payer: Payer) -> LimitsView:
        if self._reader and not self.state.purse(payer.account.account_id).is_known:
            await self._learn(self._reader, payer.account.account_id)
        return self.state.limits(payer, self._now_us())

    async def ceilings(self, account: Account) -> Ceilings:
        if self._reader and not self.state.purse(account.account_id).is_known:
            with contextlib.suppress(GatewayError):  # for a reader, what is known will do: no decision hangs on it
                await self._learn(self._reader, account.account_id)
        return self.state.ceilings(account)

    async def lifetime_paid_nano_usd(self, account_id: str) -> int:
        if self._reader and not self.state.purse(account_id).is_known:
            await self._learn(self._reader, account_id)
        return self.state.purse(account_id).lifetime_paid_nano_usd

    async def change_balances(self, balances: Sequence[Balance]) -> None:
        self._journal.check()
        for balance in balances:
            self.state.change_balance(balance, self._now_us())
        await self._journal.written(is_urgent=False)

    async def closed(self, call_id: str, account_id: str | None) -> Hold:
        hold = self.state.holds.get(call_id)
        if hold is None:
            hold = (await self._journal.find([call_id])).get(call_id)
        if hold is None or (account_id is not None and hold.account_id != account_id):
            raise NotFoundError("no such hold", metadata={"resource": "hold"})
        if not hold.is_live:
            return hold
        waiter: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(call_id, set())
        waiting.add(waiter)
        try:
            closed = await waiter
        finally:
            waiting.discard(waiter)
            if not waiting:
                self._waiting.pop(call_id, None)
        await self._journal.written()
        return closed

    async def expired(self, at_most: int) -> Sequence[str]:
        return self.state.expired(self._now_us(), at_most)

    async def settle(self, outcomes: Mapping[str, Outcome]) -> None:
        self._journal.check()
        for call_id, outcome in outcomes.items():
            self.state.settle(call_id, outcome, self._now_us())
        await self._journal.written()

    async def forget_old(self) -> None:
        """Drops tombstones and idempotency keys that nobody may ask for any more."""
        now_ms = self._now_unix_ms()
        self.state.forget_claims(first_call_id(now_ms - CLAIM_MS))
        await self._journal.forget(first_call_id(now_ms - TOMBSTONE_MS), first_call_id(now_ms - CLAIM_MS))

    def lease_until_unix_us(self, hold: Hold) -> int:
        return hold.lease_until_us + self._unix_offset_us

    async def _learn(self, reader: BalanceReader, account_id: str) -> None:
        """Takes over what metering says of an account."""
        self.state.change_balance(await reader.read(account_id), self._now_us())

    def _check_learnt(self) -> None:
        left_us = self._closed_until_us - self._now_us()
        if left_us > 0:
            raise StoreUnavailableError(
                "the hold store was lost and learns what is held", retry_in=timedelta(microseconds=left_us)
            )
        self._closed_until_us = 0

    def _prolong(self, runner: str, holds: Sequence[Hold]) -> tuple[list[Hold], list[str]]:
        lost: list[Hold] = []
        gone: list[str] = []
        for hold in holds:
            prolonged = self.state.renew(runner, hold, self._now_us())
            if prolonged is None:
                lost.append(hold)
            elif not prolonged:
                gone.append(hold.call_id)
        return lost, gone

    def _tell(self, hold: Hold) -> None:
        for waiter in self._waiting.get(hold.call_id, ()):
            if not waiter.done():
                waiter.set_result(hold)

    def _restore(self, recovered: Recovered) -> None:
        now_us = self._now_us()
        for account_id, seq, balance_nano_usd, lifetime_paid_nano_usd in recovered.purses:
            purse = self.state.purse(account_id)
            purse.seq, purse.balance_nano_usd = seq, balance_nano_usd
            purse.lifetime_paid_nano_usd = lifetime_paid_nano_usd
            purse.is_known = True
        for meter_id, requests_owed, requests_at, tokens_owed, tokens_at in recovered.meters:
            meters = Meters(
                meter_id, self._bucket(requests_owed, requests_at, now_us), self._bucket(tokens_owed, tokens_at, now_us)
            )
            self.state.restore_meters(meters)
        for hold in recovered.holds:
            if hold.is_live:
                hold.lease_until_us = now_us + LEASE_US
                self.state.adopt(hold)
            else:
                claim = Claim(hold.call_id, hold.body_sha256, is_posted=True)
                self.state.claims[hold.account_id, hold.idempotency_key] = claim

    def _bucket(self, owed_units: int, at_unix_us: int, now_us: int) -> Bucket:
        """A bucket as it was left; a wall clock that was set back only makes it wait, never for ever."""
        return Bucket(0, owed_units, min(at_unix_us - self._unix_offset_us, now_us))
