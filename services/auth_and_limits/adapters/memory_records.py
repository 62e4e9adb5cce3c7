"""What process memory holds per account, key and idempotency key, and what of it is not written yet.

Owns the shapes; refuses to change them.
"""

from dataclasses import dataclass, field

from services.auth_and_limits.holds import Hold
from services.auth_and_limits.limits import Bucket

KEY_METER = "key:"


@dataclass(slots=True)
class Meters:
    """The buckets of an account (by its id) or of a key (`key:` and its id)."""

    meter_id: str
    requests: Bucket = field(default_factory=Bucket)
    tokens: Bucket = field(default_factory=Bucket)


@dataclass(slots=True)
class Purse:
    """An account's money and slots. `held_nano_usd` and `running` always equal the sums over its live holds."""

    account_id: str
    meters: Meters
    seq: int = 0
    balance_nano_usd: int = 0
    lifetime_paid_nano_usd: int = 0
    held_nano_usd: int = 0
    running: int = 0
    is_known: bool = False  # metering, or the journal, has said what is in it

    @property
    def available_nano_usd(self) -> int:
        return self.balance_nano_usd - self.held_nano_usd


@dataclass(slots=True)
class Claim:
    """What an idempotency key of an account stands for."""

    call_id: str
    body_sha256: bytes
    is_posted: bool = False


@dataclass(slots=True)
class Changes:
    """What is not written yet. Objects are written as they are when the writing starts."""

    fresh: list[Hold] = field(default_factory=list)
    changed: dict[str, Hold] = field(default_factory=dict)
    removed: list[Hold] = field(default_factory=list)  # undone, yet perhaps on file
    meters: dict[str, Meters] = field(default_factory=dict)
    purses: dict[str, Purse] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.fresh or self.changed or self.removed or self.meters or self.purses)
