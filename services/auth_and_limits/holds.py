"""A hold's life: OPEN -> FINISHED -> CLOSED, or OPEN -> VOIDED.

Owns which step may follow which and what a step changes; refuses to know balances, stores and leases of others.
"""

import enum

import msgspec

LEASE_US = 20_000_000
LARGEST_AMOUNT_NANO_USD = 9_000_000_000_000_000  # exact in a double, in every store


class HoldState(enum.IntEnum):
    """Where a hold stands. VOIDED is CLOSED with the memory that nothing was recorded."""

    OPEN = 1
    FINISHED = 2
    CLOSED = 3
    VOIDED = 4


OPEN, FINISHED = HoldState.OPEN, HoldState.FINISHED
LIVE = frozenset({OPEN, FINISHED})


class Hold(msgspec.Struct, gc=False):
    """What is held for one call."""

    call_id: str
    run_id: str
    runner: str
    account_id: str
    key_id: str
    state: HoldState
    amount_nano_usd: int
    rate_tokens: int
    price_book_version: str
    idempotency_key: str = ""
    body_sha256: bytes = b""
    lease_until_us: int = 0
    tokens_are_final: bool = False  # the estimate was already corrected by what was really used
    is_posted: bool = False  # metering has said so once; its balance is on the way

    @property
    def is_live(self) -> bool:
        """Still holding something."""
        return self.state is OPEN or self.state is FINISHED

    def is_open_for(self, run_id: str) -> bool:
        """Whether this run may still change it."""
        return self.state is OPEN and self.run_id == run_id


def first_call_id(unix_ms: int) -> str:
    """Where the call ids of a millisecond begin, in the order of text."""
    digits = f"{unix_ms:012x}"
    return f"{digits[:8]}-{digits[8:]}"


def extend(hold: Hold, amount_nano_usd: int) -> int:
    """Raises an OPEN hold to an absolute amount. Returns by how much; an amount that is not higher changes nothing."""
    if hold.state is not HoldState.OPEN:
        raise ValueError("only an OPEN hold can be extended")
    raised_by = max(0, amount_nano_usd - hold.amount_nano_usd)
    hold.amount_nano_usd += raised_by
    return raised_by


def finish(hold: Hold, cost_nano_usd: int | None) -> int:
    """Ends the running part of a live hold; a known cost becomes the amount. Returns the change of the amount."""
    if not hold.is_live:
        raise ValueError("a closed hold stays closed")
    hold.state = HoldState.FINISHED
    if cost_nano_usd is None:
        return 0
    change = cost_nano_usd - hold.amount_nano_usd
    hold.amount_nano_usd = cost_nano_usd
    return change


def correct_tokens(hold: Hold, used_tokens: int | None) -> int:
    """Replaces the estimate of tokens by what was used, once. Returns the difference to take from the minute."""
    if used_tokens is None or hold.tokens_are_final:
        return 0
    difference = used_tokens - hold.rate_tokens
    hold.rate_tokens = used_tokens
    hold.tokens_are_final = True
    return difference


def close(hold: Hold, state: HoldState) -> int:
    """Ends a live hold for ever, as CLOSED or VOIDED. Returns the money that was still held."""
    if not hold.is_live or state in LIVE:
        raise ValueError("a closed hold stays closed")
    released = hold.amount_nano_usd
    hold.amount_nano_usd = 0
    hold.state = state
    return released
