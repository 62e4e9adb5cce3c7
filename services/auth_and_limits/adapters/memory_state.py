"""Buckets, holds and balances in process memory: every decision is one synchronous step, so nothing can come between.

Owns the decisions' state and notes what is to be written; refuses to write, to wait, and to read a clock.
"""

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice, takewhile

from services.auth_and_limits import holds
from services.auth_and_limits.adapters.deciding import refusal_of, view_of
from services.auth_and_limits.adapters.memory_records import KEY_METER, Changes, Claim, Meters, Purse
from services.auth_and_limits.holds import LEASE_US, Hold, HoldState
from services.auth_and_limits.limits import Demand, LimitsView, Reason
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
from services.runtime.errors import CallAlreadyAdmittedError, HoldNotOpenError, IdempotencyKeyReusedError

# A hold that was posted while its call still ran is remembered this long, so that its Finish can correct the tokens.
LINGER_US = 30_000_000

# Members of an enum cost a look-up each time they are named.
_OPEN = HoldState.OPEN
_REQUESTS, _TOKENS = Reason.REQUESTS, Reason.TOKENS


def _nothing(_hold: Hold) -> None:
    """Nobody waits for a hold."""


class MemoryState:
    """The whole hot state of one process. `now_us` is monotonic and the same source for every call."""

    def __init__(self, plans: PlanBook, on_closed: Callable[[Hold], None] = _nothing) -> None:
        self._plans = plans
        self._on_closed = on_closed
        self.purses: dict[str, Purse] = {}
        self.key_meters: dict[str, Meters] = {}
        self.holds: dict[str, Hold] = {}  # live ones, and for a while those that were posted before their Finish
        self.claims: dict[tuple[str, str], Claim] = {}
        self.changes = Changes()
        self.open_holds = 0
        self._lingering: deque[tuple[int, str]] = deque()

    def take_changes(self) -> Changes:
        """What is to be written; from here on changes are noted anew."""
        changes, self.changes = self.changes, Changes()
        return changes

    def put_back(self, unwritten: Changes) -> None:
        """Notes again what could not be written; fresh holds are not among it, they are undone."""
        self.changes.removed[:0] = unwritten.removed
        for call_id, hold in unwritten.changed.items():
            self.changes.changed.setdefault(call_id, hold)
        self.changes.meters.update(unwritten.meters)
        self.changes.purses.update(unwritten.purses)

    def purse(self, account_id: str) -> Purse:
        """The account's purse; an account that metering has not told of has nothing in it."""
        purse = self.purses.get(account_id)
        if purse is None:
            purse = self.purses[account_id] = Purse(account_id, Meters(account_id))
        return purse

    def ceilings(self, account: Account) -> Ceilings:
        """The ceilings in force now."""
        purse = self.purses.get(account.account_id)
        lifetime_paid_nano_usd = purse.lifetime_paid_nano_usd if purse else 0
        return ceilings_of(self._plans.plan(account.plan), lifetime_paid_nano_usd, account.overrides)

    def limits(self, payer: Payer, now_us: int) -> LimitsView:
        """What may be done now."""
        purse = self.purse(payer.account.account_id)
        return view_of(self._demands(purse, payer, self.ceilings(payer.account), 0, now_us))

    def admit(self, ask: Ask, payer: Payer, now_us: int) -> Verdict:
        """Decides, and takes all or nothing."""
        purse = self.purse(payer.account.account_id)
        ceilings = self.ceilings(payer.account)
        demands = self._demands(purse, payer, ceilings, ask.rate_tokens, now_us)
        known = self.holds.get(ask.call_id)
        if known is not None:
            if known.run_id != ask.run_id or known.account_id != purse.account_id or not known.is_live:
                raise CallAlreadyAdmittedError("the call id belongs to another run")
            return Admitted(known, view_of(demands), is_repeat=True)
        if ask.idempotency_key and (earlier := self._earlier(ask, purse, demands)):
            return earlier
        refused = refusal_of(ask, purse.available_nano_usd, purse.running < ceilings.concurrent_calls, demands)
        if refused is not None:
            return refused
        for bucket, tokens, _ in demands:
            bucket.take(tokens)
        hold = self._open(ask, payer, now_us)
        self.changes.fresh.append(hold)
        self._note_meters(hold)
        return Admitted(hold, view_of(demands))

    def undo(self, hold: Hold, now_us: int) -> None:
        """Takes back an admission that could not be kept, unless it has ended since."""
        if self.holds.get(hold.call_id) is not hold:
            return
        del self.holds[hold.call_id]
        if self.changes.changed.get(hold.call_id) is hold:
            del self.changes.changed[hold.call_id]
        if hold.state is _OPEN:
            self._release(hold, HoldState.VOIDED)
            self._give_back(hold, now_us)

    def extend(self, call_id: str, run_id: str, amount_nano_usd: int) -> tuple[Hold, int] | OutOfCredit:
        """Raises an OPEN hold; returns it and by how much, or why not."""
        hold = self._open_hold(call_id, run_id)
        purse = self.purse(hold.account_id)
        more = amount_nano_usd - hold.amount_nano_usd
        if more > 0 and more > purse.available_nano_usd:
            return OutOfCredit(purse.available_nano_usd)
        raised_by = holds.extend(hold, amount_nano_usd)
        if raised_by:
            purse.held_nano_usd += raised_by
            self._note(hold)
        return hold, raised_by

    def undo_extend(self, hold: Hold, raised_by: int) -> None:
        """Takes back an extension that could not be kept, unless the hold has ended since."""
        if hold.state is _OPEN and raised_by:
            hold.amount_nano_usd -= raised_by
            self.purse(hold.account_id).held_nano_usd -= raised_by
            self._note(hold)

    def renew(self, runner: str, theirs: Hold, now_us: int) -> bool | None:
        """Prolongs a lease. True: done; False: gone for this run; None: not known here."""
        ours = self.holds.get(theirs.call_id)
        if ours is None:
            return None
        if ours.run_id != theirs.run_id or not ours.is_live:
            return False
        ours.runner = runner
        ours.lease_until_us = now_us + LEASE_US
        if ours.state is _OPEN:
            self._catch_up(ours, theirs, now_us)
        return True

    def recreate(self, runner: str, lost: Hold, now_us: int) -> None:
        """Takes over a hold that was lost: it counts at once, whatever the balance says."""
        lost.runner = runner
        lost.lease_until_us = now_us + LEASE_US
        self.adopt(lost)
        self._note(lost)

    def adopt(self, hold: Hold) -> None:
        """Counts a live hold that the state does not have: recreated, or read back from the journal."""
        self.holds[hold.call_id] = hold
        purse = self.purse(hold.account_id)
        purse.held_nano_usd += hold.amount_nano_usd
        if hold.state is _OPEN:
            purse.running += 1
            self.open_holds += 1
        if hold.idempotency_key:
            self.claims[hold.account_id, hold.idempotency_key] = Claim(hold.call_id, hold.body_sha256)

    def restore_meters(self, meters: Meters) -> None:
        """Takes over buckets that were read back from the journal."""
        if meters.meter_id.startswith(KEY_METER):
            self.key_meters[meters.meter_id.removeprefix(KEY_METER)] = meters
        else:
            self.purse(meters.meter_id).meters = meters

    def forget_claims(self, before_id: str) -> None:
        """Drops the idempotency keys of calls with lower ids. They stand in the order of admission, oldest first."""
        old = takewhile(lambda item: item[1].call_id < before_id, self.claims.items())
        for key, _ in list(old):
            del self.claims[key]

    def finish(self, finished: Finished, now_us: int) -> None:
        """Ends the running part of a call."""
        hold = self.holds.get(finished.call_id)
        if hold is None or hold.run_id != finished.run_id:
            return
        if hold.is_live:
            self._finish(hold, finished.cost_nano_usd)
        else:
            del self.holds[hold.call_id]  # it lingered for this correction only
        self._correct(hold, finished.used_tokens, now_us)

    def void(self, call_id: str, run_id: str, now_us: int) -> bool:
        """Releases an OPEN hold. False: it is not known here."""
        hold = self.holds.get(call_id)
        if hold is None:
            return False
        if not hold.is_open_for(run_id):
            raise HoldNotOpenError("the hold is not open for this run")
        del self.holds[call_id]
        self._release(hold, HoldState.VOIDED)
        self._give_back(hold, now_us)
        self._note(hold)
        return True

    def change_balance(self, balance: Balance, now_us: int) -> None:
        """Takes over a newer balance; closes the named holds in any case."""
        purse = self.purse(balance.account_id)
        for call_id in balance.closed_call_ids:
            hold = self.holds.get(call_id)
            if hold is not None and hold.is_live:
                self._close_posted(hold, now_us)
        purse.is_known = True
        if balance.seq > purse.seq:
            purse.seq = balance.seq
            purse.balance_nano_usd = balance.balance_nano_usd
            purse.lifetime_paid_nano_usd = balance.lifetime_paid_nano_usd
            self.changes.purses[purse.account_id] = purse

    def expired(self, now_us: int, at_most: int) -> list[str]:
        """Live holds whose lease has run out. Forgets what has lingered long enough."""
        while self._lingering and self._lingering[0][0] <= now_us:
            call_id = self._lingering.popleft()[1]
            if (hold := self.holds.get(call_id)) is not None and not hold.is_live:
                del self.holds[call_id]
        run_out = (hold.call_id for hold in self.holds.values() if hold.lease_until_us <= now_us and hold.is_live)
        return list(islice(run_out, at_most))

    def settle(self, call_id: str, outcome: Outcome, now_us: int) -> None:
        """Ends a hold whose lease is still run out.

        A posted one first keeps its charge for another lease: its balance is on the way, and closing before it arrives
        would lend the money out. If nothing has closed it by then, the balance came before the hold was recreated.
        """
        hold = self.holds.get(call_id)
        if hold is None or not hold.is_live or hold.lease_until_us > now_us:
            return
        if not outcome.is_posted:
            del self.holds[call_id]
            self._release(hold, HoldState.VOIDED)
            self._note(hold)
        elif hold.is_posted:
            self._close_posted(hold, now_us)
        else:
            hold.is_posted = True
            hold.lease_until_us = now_us + LEASE_US
            self._finish(hold, outcome.charged_nano_usd)

    def _demands(self, purse: Purse, payer: Payer, ceilings: Ceilings, rate_tokens: int, now_us: int) -> list[Demand]:
        """What a call wants of every bucket on its way, the account's two first, all brought up to now."""
        requests, tokens = purse.meters.requests, purse.meters.tokens
        requests.settle(ceilings.requests_per_minute, now_us)
        tokens.settle(ceilings.tokens_per_minute, now_us)
        demands: list[Demand] = [(requests, 1, _REQUESTS), (tokens, rate_tokens, _TOKENS)]
        if payer.key is None:
            return demands
        throttle = payer.key.throttle
        if throttle.requests_per_minute is not None and throttle.requests_per_minute < ceilings.requests_per_minute:
            bucket = self._meters_of(payer.key.key_id).requests
            bucket.settle(throttle.requests_per_minute, now_us)
            demands.append((bucket, 1, Reason.KEY_REQUESTS))
        if throttle.tokens_per_minute is not None and throttle.tokens_per_minute < ceilings.tokens_per_minute:
            bucket = self._meters_of(payer.key.key_id).tokens
            bucket.settle(throttle.tokens_per_minute, now_us)
            demands.append((bucket, rate_tokens, Reason.KEY_TOKENS))
        return demands

    def _meters_of(self, key_id: str) -> Meters:
        meters = self.key_meters.get(key_id)
        if meters is None:
            meters = self.key_meters[key_id] = Meters(KEY_METER + key_id)
        return meters

    def _earlier(self, ask: Ask, purse: Purse, demands: list[Demand]) -> Earlier | None:
        claim = self.claims.get((purse.account_id, ask.idempotency_key))
        if claim is None:
            return None
        if claim.body_sha256 != ask.body_sha256:
            raise IdempotencyKeyReusedError("the idempotency key was used with another body")
        return Earlier(claim.call_id, claim.is_posted, view_of(demands))

    def _open(self, ask: Ask, payer: Payer, now_us: int) -> Hold:
        hold = Hold(
            call_id=ask.call_id,
            run_id=ask.run_id,
            runner=ask.runner,
            account_id=payer.account.account_id,
            key_id=payer.key_id,
            state=_OPEN,
            amount_nano_usd=ask.amount_nano_usd,
            rate_tokens=ask.rate_tokens,
            price_book_version=ask.price_book_version,
            idempotency_key=ask.idempotency_key,
            body_sha256=ask.body_sha256,
            lease_until_us=now_us + LEASE_US,
        )
        self.adopt(hold)
        return hold

    def _open_hold(self, call_id: str, run_id: str) -> Hold:
        hold = self.holds.get(call_id)
        if hold is None or not hold.is_open_for(run_id):
            raise HoldNotOpenError("the hold is not open for this run")
        return hold

    def _catch_up(self, ours: Hold, theirs: Hold, now_us: int) -> None:
        """Applies what a runner's record of an OPEN hold has ahead of ours: a lost Finish, or an extension."""
        if theirs.state is HoldState.FINISHED:
            self._finish(ours, theirs.amount_nano_usd)
            self._correct(ours, theirs.rate_tokens, now_us)
        elif raised_by := holds.extend(ours, theirs.amount_nano_usd):
            self.purse(ours.account_id).held_nano_usd += raised_by
            self._note(ours)

    def _finish(self, hold: Hold, cost_nano_usd: int | None) -> None:
        purse = self.purse(hold.account_id)
        self._free_slot(hold, purse)
        purse.held_nano_usd += holds.finish(hold, cost_nano_usd)
        self._note(hold)

    def _correct(self, hold: Hold, used_tokens: int | None, now_us: int) -> None:
        difference = holds.correct_tokens(hold, used_tokens)
        if difference:
            self._charge_meters(hold, 0, difference, now_us)

    def _close_posted(self, hold: Hold, now_us: int) -> None:
        if hold.state is HoldState.FINISHED:
            del self.holds[hold.call_id]
        else:
            self._lingering.append((now_us + LINGER_US, hold.call_id))
        self._release(hold, HoldState.CLOSED)
        self._note(hold)

    def _release(self, hold: Hold, state: HoldState) -> None:
        """Frees the slot and the money, settles the claim, tells whoever waits."""
        purse = self.purse(hold.account_id)
        self._free_slot(hold, purse)
        purse.held_nano_usd -= holds.close(hold, state)
        claim = self.claims.get((hold.account_id, hold.idempotency_key)) if hold.idempotency_key else None
        if claim is not None and claim.call_id == hold.call_id:
            if state is HoldState.CLOSED:
                claim.is_posted = True
            else:
                del self.claims[hold.account_id, hold.idempotency_key]
        self._on_closed(hold)

    def _free_slot(self, hold: Hold, purse: Purse) -> None:
        if hold.state is _OPEN:
            purse.running -= 1
            self.open_holds -= 1

    def _give_back(self, hold: Hold, now_us: int) -> None:
        self._charge_meters(hold, -1, -hold.rate_tokens, now_us)

    def _charge_meters(self, hold: Hold, requests: int, tokens: int, now_us: int) -> None:
        """Corrects the buckets that the hold was taken from, those of its key included."""
        meters: Iterable[Meters | None] = (self.purse(hold.account_id).meters, self.key_meters.get(hold.key_id))
        for meter in meters:
            if meter is not None:
                if requests:
                    meter.requests.correct(requests, now_us)
                meter.tokens.correct(tokens, now_us)
        self._note_meters(hold)

    def _note(self, hold: Hold) -> None:
        self.changes.changed[hold.call_id] = hold

    def _note_meters(self, hold: Hold) -> None:
        self.changes.meters[hold.account_id] = self.purses[hold.account_id].meters
        key_meters = self.key_meters.get(hold.key_id)
        if key_meters is not None:
            self.changes.meters[key_meters.meter_id] = key_meters
