"""Values of this service as Redis's scripts take and give them.

Owns the translation both ways; refuses to ask anything.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from services.auth_and_limits.adapters.redis_wire import Argument
from services.auth_and_limits.holds import Hold, HoldState
from services.auth_and_limits.limits import Bucket, Demand, Reason
from services.auth_and_limits.records import Account, Ask, Payer
from services.auth_and_limits.tiers import Overrides, Plan, PlanBook, ceilings_of

_encode = msgspec.msgpack.Encoder().encode


class Tiers:
    """The ceilings of every plan and set of overrides, packed once."""

    def __init__(self, plans: PlanBook) -> None:
        self._plans = plans
        self._packed: dict[tuple[str, Overrides], bytes] = {}

    def packed(self, account: Account) -> bytes:
        """The account's ceilings by what was paid in its life: the script picks the tier that holds at its instant."""
        key = (account.plan, account.overrides)
        packed = self._packed.get(key)
        if packed is None:
            if len(self._packed) >= 10_000:
                self._packed.clear()
            packed = self._packed[key] = _encode(_tiers_of(self._plans.plan(account.plan), account.overrides))
        return packed


def _tiers_of(plan: Plan, overrides: Overrides) -> list[list[int]]:
    tiers = []
    for tier in plan.tiers:
        paid = tier.from_paid_nano_usd
        ceilings = ceilings_of(plan, paid, overrides)
        limits = [ceilings.requests_per_minute, ceilings.tokens_per_minute, ceilings.concurrent_calls]
        tiers.append([paid, *limits])
    return tiers


def key_of(account_id: str) -> str:
    """Where all of an account lives: one hash slot."""
    return f"mws:{{{account_id}}}"


def payer_arguments(payer: Payer, tiers: bytes) -> tuple[Argument, Argument, Argument, Argument]:
    """Key id, tiers, and the key's own ceilings, for `look.lua`."""
    key = payer.key
    if key is None:
        return "", tiers, "", ""
    throttle = key.throttle
    requests, tokens = throttle.requests_per_minute, throttle.tokens_per_minute
    return key.key_id, tiers, "" if requests is None else requests, "" if tokens is None else tokens


def demands_of(answer: Sequence[Any], rate_tokens: int) -> list[Demand]:
    """The buckets of an answer of `look.lua`, as they were at its instant."""
    now_us = answer[1]
    demands: list[Demand] = [
        (Bucket(answer[5], answer[6], now_us), 1, Reason.REQUESTS),
        (Bucket(answer[7], answer[8], now_us), rate_tokens, Reason.TOKENS),
    ]
    if answer[9]:
        demands.append((Bucket(answer[9], answer[10], now_us), 1, Reason.KEY_REQUESTS))
    if answer[11]:
        demands.append((Bucket(answer[11], answer[12], now_us), rate_tokens, Reason.KEY_TOKENS))
    return demands


def ask_arguments(ask: Ask) -> tuple[Argument, ...]:
    """What `admit.lua` takes beside the payer."""
    return (
        ask.call_id,
        ask.run_id,
        ask.runner,
        ask.amount_nano_usd,
        ask.rate_tokens,
        ask.price_book_version,
        ask.idempotency_key,
        ask.body_sha256.hex(),
    )


def new_hold(ask: Ask, payer: Payer, lease_until_us: int) -> Hold:
    """The hold that `admit.lua` has just made."""
    return Hold(
        ask.call_id,
        ask.run_id,
        ask.runner,
        payer.account.account_id,
        payer.key_id,
        HoldState.OPEN,
        ask.amount_nano_usd,
        ask.rate_tokens,
        ask.price_book_version,
        ask.idempotency_key,
        ask.body_sha256,
        lease_until_us,
    )


def hold_of(call_id: str, account_id: str, fields: Sequence[bytes | None]) -> Hold:
    """A hold from its record. Of a closed one only the run and the state are left."""
    run, runner, key, state, amount, tokens, book, idempotency_key, body, lease, is_final, is_posted = fields
    return Hold(
        call_id=call_id,
        run_id=_text(run),
        runner=_text(runner),
        account_id=account_id,
        key_id=_text(key),
        state=HoldState(int(state or 0)),
        amount_nano_usd=int(amount or 0),
        rate_tokens=int(tokens or 0),
        price_book_version=_text(book),
        idempotency_key=_text(idempotency_key),
        body_sha256=bytes.fromhex(_text(body)),
        lease_until_us=int(lease or 0),
        tokens_are_final=bool(is_final),
        is_posted=bool(is_posted),
    )


def _text(value: bytes | None) -> str:
    return value.decode() if value else ""
