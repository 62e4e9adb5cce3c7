"""The hold store of several processes: every decision is one script in Redis, which alone has the time and the numbers.

Owns what is asked, and what the answers mean; refuses to decide, and to ask for one decision twice.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from services.auth_and_limits.adapters.balance_reading import BalanceReader
from services.auth_and_limits.adapters.deciding import refusal_of, view_of
from services.auth_and_limits.adapters.redis_epoch import Epoch
from services.auth_and_limits.adapters.redis_link import RedisLink
from services.auth_and_limits.adapters.redis_reaping import LiveAccounts
from services.auth_and_limits.adapters.redis_records import (
    Tiers,
    ask_arguments,
    demands_of,
    hold_of,
    key_of,
    new_hold,
    payer_arguments,
)
from services.auth_and_limits.adapters.redis_scripts import Code
from services.auth_and_limits.adapters.redis_wire import Argument, away
from services.auth_and_limits.holds import LEASE_US, Hold
from services.auth_and_limits.limits import LimitsView
from services.auth_and_limits.ports import BalanceSource
from services.auth_and_limits.records import (
    Account,
    Admitted,
    Ask,
    Balance,
    Earlier,
    Finished,
    Outcome,
    OutOfCredit,
    Payer,
    Verdict,
)
from services.auth_and_limits.tiers import Ceilings, PlanBook, ceilings_of
from services.runtime.errors import (
    CallAlreadyAdmittedError,
    HoldNotOpenError,
    IdempotencyKeyReusedError,
    NotFoundError,
)

TOMBSTONE_MS = 3_600_000
_DONE, _UNLOADED = int(Code.DONE), int(Code.UNLOADED)
_SENT_AT_ONCE = 64
_CLOSED_AT_ONCE = 8
_FIRST_LOOK_S = 0.02
_LAST_LOOK_S = 0.25


class RedisHolds:
    """`ports.HoldStore` on Redis or Valkey. Any number of processes may share it."""

    def __init__(
        self,
        link: RedisLink,
        plans: PlanBook,
        *,
        name: str,
        balances: BalanceSource | None = None,
        learning_s: float = 6.0,
    ) -> None:
        self._link = link
        self._plans = plans
        self._tiers = Tiers(plans)
        self._reader = BalanceReader(balances) if balances else None
        self._epoch = Epoch(link, learning_s)
        self._live = LiveAccounts(link, name)
        link.on_up = self._on_up

    async def open(self) -> None:
        """Begins to connect. A Redis that is away now is waited for: until then nobody is admitted."""
        await self._link.open()

    async def close(self) -> None:
        """Ends the connection."""
        if self._reader:
            await self._reader.close()
        await self._link.close()

    @property
    def is_healthy(self) -> bool:
        """Whether Redis answers and knows all that is held."""
        return self._link.is_up and self._epoch.is_settled

    @property
    def open_holds(self) -> int:
        """Live holds, as the process that reaps has seen them last; 0 in the others."""
        return self._live.live_holds

    async def admit(self, ask: Ask, payer: Payer) -> Verdict:
        self._epoch.check()
        account_id = payer.account.account_id
        self._live.note(account_id)
        owner = self._link.send("SET", _owner_key(ask.call_id), account_id, "NX", "PX", TOMBSTONE_MS)
        answer = await self._look("admit", payer, *ask_arguments(ask))
        is_first = await owner is not None
        code = answer[0]
        if is_first:
            if code in (Code.REFUSED, Code.EARLIER):
                self._link.send("DEL", _owner_key(ask.call_id))
        elif code in (_DONE, Code.REPEAT) and not await self._is_owner(ask.call_id, account_id):
            # Another account's: what was taken in the same breath is given back.
            if code == _DONE:
                await self._link.run("void", key_of(account_id), ask.call_id, ask.run_id)
            code = Code.ALREADY
        return _verdict(code, answer, ask, payer)

    async def extend(self, call_id: str, run_id: str, amount_nano_usd: int, account_id: str = "") -> Hold | OutOfCredit:
        self._epoch.check()
        account_id = account_id or await self._owner(call_id)
        answer = await self._loaded("extend", account_id, call_id, run_id, amount_nano_usd)
        if answer[0] == Code.OUT:
            return OutOfCredit(answer[2])
        if answer[0] != Code.DONE:
            raise HoldNotOpenError("the hold is not open for this run")
        return hold_of(call_id, account_id, answer[2])

    async def renew(self, runner: str, holds: Sequence[Hold]) -> Sequence[str]:
        for account_id in {hold.account_id for hold in holds}:
            self._live.note(account_id)
        answers = await self._all(
            [
                (
                    "renew",
                    hold.account_id,
                    hold.call_id,
                    hold.run_id,
                    runner,
                    hold.key_id,
                    int(hold.state),
                    hold.amount_nano_usd,
                    hold.rate_tokens,
                    hold.price_book_version,
                )
                for hold in holds
            ]
        )
        return [hold.call_id for hold, answer in zip(holds, answers, strict=True) if answer[2]]

    async def finish(self, finished: Sequence[Finished]) -> None:
        asked: list[tuple[Argument, ...]] = []
        for item in finished:
            account_id = item.account_id or await self._owner(item.call_id)
            cost = "" if item.cost_nano_usd is None else item.cost_nano_usd
            used = "" if item.used_tokens is None else item.used_tokens
            asked.append(("finish", account_id, item.call_id, item.run_id, cost, used))
        await self._all(asked)

    async def void(self, call_id: str, run_id: str, account_id: str = "") -> None:
        account_id = account_id or await self._owner(call_id)
        answer = await self._link.run("void", key_of(account_id), call_id, run_id)
        if answer[0] == Code.NOT_OPEN:
            raise HoldNotOpenError("the hold is not open for this run")

    async def limits(self, payer: Payer) -> LimitsView:
        return view_of(demands_of(await self._look("view", payer), 0))

    async def ceilings(self, account: Account) -> Ceilings:
        paid = (await self._look("view", Payer(account)))[13]
        return ceilings_of(self._plans.plan(account.plan), paid, account.overrides)

    async def lifetime_paid_nano_usd(self, account_id: str) -> int:
        paid: int = (await self._look("view", Payer(Account(account_id, "", ""))))[13]
        return paid

    async def change_balances(self, balances: Sequence[Balance]) -> None:
        asked: list[tuple[Argument, ...]] = []
        for balance in balances:
            values = balance.seq, balance.balance_nano_usd, balance.lifetime_paid_nano_usd
            closed = balance.closed_call_ids
            # The balance goes first: a hold that closes before it would lend its money out.
            for first in range(0, len(closed) or 1, _CLOSED_AT_ONCE):
                asked.append(("balance", balance.account_id, *values, *closed[first : first + _CLOSED_AT_ONCE]))
        await self._all(asked)

    async def closed(self, call_id: str, account_id: str | None) -> Hold:
        owner = account_id or await self._owner(call_id)
        pause_s = _FIRST_LOOK_S
        while True:
            answer = await self._link.run("read", key_of(owner), call_id)
            if answer[0] == Code.UNKNOWN:
                raise NotFoundError("no such hold", metadata={"resource": "hold"})
            hold = hold_of(call_id, owner, answer[2])
            if not hold.is_live:
                return hold
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LAST_LOOK_S)

    async def expired(self, at_most: int) -> Sequence[str]:
        if not self._link.is_up:
            return ()
        return await self._live.expired(at_most)

    async def settle(self, outcomes: Mapping[str, Outcome]) -> None:
        asked: list[tuple[Argument, ...]] = []
        for call_id, outcome in outcomes.items():
            account_id = self._live.account_of(call_id) or await self._owner(call_id)
            asked.append(("settle", account_id, call_id, int(outcome.is_posted), outcome.charged_nano_usd))
        await self._all(asked)

    async def forget_old(self) -> None:
        """Nothing to do: Redis lets what is too old expire by itself."""

    def lease_until_unix_us(self, hold: Hold) -> int:
        return hold.lease_until_us

    async def _on_up(self, run_id: str) -> None:
        self._live.forget()
        await self._epoch.begin(run_id)

    async def _look(self, name: str, payer: Payer, *arguments: Argument) -> list[Any]:
        account = payer.account
        about = payer_arguments(payer, self._tiers.packed(account))
        return await self._loaded(name, account.account_id, *about, *arguments)

    async def _loaded(self, name: str, account_id: str, *arguments: Argument) -> list[Any]:
        """The answer of a script that needs the account's balance; one that the store does not know is asked for."""
        key = key_of(account_id)
        answer = await self._link.run(name, key, self._epoch.name, *arguments)
        if answer[0] != _UNLOADED:
            return answer
        is_decision = name != "view"
        await self._epoch.ask()
        if is_decision:
            self._epoch.check()
        balance = await self._reader.read(account_id) if self._reader else Balance(account_id, 0, 0, 0)
        values = balance.seq, balance.balance_nano_usd, balance.lifetime_paid_nano_usd
        await self._link.run("load", key, self._epoch.name, *values)
        answer = await self._link.run(name, key, self._epoch.name, *arguments)
        if answer[0] == Code.UNLOADED:
            raise away()
        return answer

    async def _all(self, asked: Sequence[tuple[Argument, ...]]) -> list[list[Any]]:
        """The answers of many scripts: (script, account, arguments…). Any failure fails them all.

        However many, admissions of others come in between, and no answer is awaited longer than Redis may take.
        """
        answers: list[list[Any]] = []
        for first in range(0, len(asked), _SENT_AT_ONCE):
            some = asked[first : first + _SENT_AT_ONCE]
            answers += await self._link.run_all([(name, key_of(str(account)), *rest) for name, account, *rest in some])
        return answers

    async def _is_owner(self, call_id: str, account_id: str) -> bool:
        """Whether the call id is the account's, or becomes its own now: another run of it may just have let it go."""
        owner = await self._owner(call_id)
        if not owner:
            await self._link.ask("SET", _owner_key(call_id), account_id, "NX", "PX", TOMBSTONE_MS)
            owner = await self._owner(call_id)
        return owner == account_id

    async def _owner(self, call_id: str) -> str:
        """The account of a call, where nobody said it; empty: not known."""
        owner = await self._link.ask("GET", _owner_key(call_id))
        return owner.decode() if owner else ""


def _owner_key(call_id: str) -> str:
    """A call id is used once, whatever the account: this key is its own hash slot's."""
    return f"mws:c:{call_id}"


def _verdict(code: int, answer: list[Any], ask: Ask, payer: Payer) -> Verdict:
    if code == _DONE:
        return Admitted(new_hold(ask, payer, answer[1] + LEASE_US), view_of(demands_of(answer, ask.rate_tokens)))
    if code == Code.ALREADY:
        raise CallAlreadyAdmittedError("the call id belongs to another run")
    if code == Code.REUSED:
        raise IdempotencyKeyReusedError("the idempotency key was used with another body")
    demands = demands_of(answer, ask.rate_tokens)
    if code == Code.REPEAT:
        hold = hold_of(ask.call_id, payer.account.account_id, answer[14])
        return Admitted(hold, view_of(demands), is_repeat=True)
    if code == Code.EARLIER:
        return Earlier(answer[14].decode(), bool(answer[15]), view_of(demands))
    refused = refusal_of(ask, answer[2], answer[3] < answer[4], demands)
    if refused is None:
        raise away()
    return refused
