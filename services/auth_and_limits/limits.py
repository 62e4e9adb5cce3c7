"""Token buckets in exact integers, the same arithmetic for process memory and for a shared store.

Owns capacity, waiting and refill; refuses to know a clock, a store, or what a token costs.

A bucket remembers what it is owed, in token·µs: a token is 60,000,000 units, the capacity is limit · 60,000,000, and
`limit` units flow back per microsecond. Owing nothing is a full bucket, so an idle account needs no state at all.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

MINUTE_US = 60_000_000
TOKEN_UNITS = MINUTE_US
LARGEST_LIMIT = 150_000_000  # its capacity, 9e15 units, is still exact in a double


class Reason(enum.IntEnum):
    """What stood in the way of a call."""

    REQUESTS = 1
    TOKENS = 2
    CONCURRENCY = 3
    KEY_REQUESTS = 4
    KEY_TOKENS = 5
    CREDIT = 6


class Bucket(msgspec.Struct, gc=False):
    """What a bucket is owed at an instant, and the limit it was last seen with (0: not seen since a restart)."""

    limit: int = 0
    owed_units: int = 0
    at_us: int = 0

    def settle(self, limit: int, now_us: int) -> None:
        """Brings the bucket to `now_us` under `limit`.

        After a change of the limit what was used stays used, but never counts for more than one whole new minute.
        """
        elapsed_us = now_us - self.at_us
        if self.owed_units and elapsed_us > 0:
            self.owed_units = max(0, self.owed_units - elapsed_us * (self.limit or limit))
        if self.limit != limit:
            if self.limit:
                self.owed_units = min(self.owed_units, limit * TOKEN_UNITS)
            self.limit = limit
        if elapsed_us > 0:
            self.at_us = now_us

    def wait_us(self, tokens: int) -> int | None:
        """How long until `tokens` can be taken: 0 for now, None for never. Exact: a microsecond less is not enough."""
        if tokens > self.limit:
            return None
        over = self.owed_units + (tokens - self.limit) * TOKEN_UNITS
        return -(-over // self.limit) if over > 0 else 0

    def take(self, tokens: int) -> None:
        """Takes `tokens`, into debt if need be; gives back what is negative, never beyond full."""
        owed_units = self.owed_units + tokens * TOKEN_UNITS
        self.owed_units = owed_units if owed_units > 0 else 0

    def correct(self, tokens: int, now_us: int) -> None:
        """Takes or gives back the difference between an estimate and what was really used."""
        if self.limit:
            self.settle(self.limit, now_us)
        else:
            self.at_us = max(self.at_us, now_us)  # what flowed back since is not known: count none
        self.take(tokens)

    @property
    def remaining(self) -> int:
        """Whole tokens that could be taken at once."""
        remaining = self.limit - -(-self.owed_units // TOKEN_UNITS)
        return remaining if remaining > 0 else 0

    @property
    def reset_us(self) -> int:
        """How long until it is full again."""
        return -(-self.owed_units // self.limit)

    def view(self) -> "BucketView":
        """The bucket as its owner may see it."""
        return BucketView(self.limit, self.remaining, self.reset_us)


Demand = tuple[Bucket, int, Reason]
"""What a call wants of one bucket: how many tokens, and the reason of a refusal if they are not there."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """The demand to wait longest for. `retry_in_us` None: it can never pass, being over `ceiling` by itself."""

    reason: Reason
    retry_in_us: int | None
    ceiling: int | None = None


class BucketView(msgspec.Struct, frozen=True):
    """A bucket at one instant."""

    limit: int
    remaining: int
    reset_us: int


class LimitsView(msgspec.Struct, frozen=True):
    """What may still be done this minute."""

    requests: BucketView
    tokens: BucketView


def shortage_of(demands: Sequence[Demand]) -> Shortage | None:
    """What stands in the way of taking all the demands at once; None if nothing does. Takes nothing."""
    worst: Shortage | None = None
    for bucket, tokens, reason in demands:
        wait_us = bucket.wait_us(tokens)
        if wait_us == 0:
            continue
        if wait_us is None:
            return Shortage(reason, None, bucket.limit)
        if worst is None or worst.retry_in_us is None or wait_us > worst.retry_in_us:
            worst = Shortage(reason, wait_us)
    return worst


def binding_view(account: Bucket, key: Bucket | None) -> BucketView:
    """The numbers of the bucket that would stop the caller first."""
    return (account if key is None or account.remaining < key.remaining else key).view()
