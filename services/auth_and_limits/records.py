"""Accounts, keys, teams and audit events as frozen values, and what a call asks for and is told.

Owns shapes that use cases, ports and adapters share; refuses to hold behaviour. Those made for every call are structs,
which cost a tenth of a frozen dataclass to make.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from services.auth_and_limits.holds import Hold
from services.auth_and_limits.limits import LimitsView, Reason
from services.auth_and_limits.tiers import NO_OVERRIDES, Overrides


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays."""

    account_id: str
    name: str
    plan: str
    overrides: Overrides = NO_OVERRIDES
    suspended: bool = False
    created_at_ms: int = 0
    closed_at_ms: int | None = None
    revision: int = 0  # number of the change that made it so

    @property
    def may_call(self) -> bool:
        """Whether its credentials work."""
        return not self.suspended and self.closed_at_ms is None


@dataclass(frozen=True, slots=True)
class Throttle:
    """Ceilings of one key; None: none of its own."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


NO_THROTTLE = Throttle()


@dataclass(frozen=True, slots=True)
class Key:
    """An API key without its text."""

    key_id: str
    account_id: str
    name: str
    prefix: str
    throttle: Throttle = NO_THROTTLE
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None
    created_at_ms: int = 0
    last_used_at_ms: int | None = None
    revision: int = 0  # number of the change that made it so


@dataclass(frozen=True, slots=True)
class Team:
    """An OIDC subject that acts for an account."""

    team_id: str
    account_id: str
    issuer: str
    subject: str
    created_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who changed what, when."""

    event_id: str
    at_ms: int
    actor: str
    action: str
    account_id: str
    resource_id: str
    changes: Mapping[str, str] = field(default_factory=dict)


class Payer(msgspec.Struct, frozen=True):
    """Who pays for a call, and by which key. Both are as the decision found them."""

    account: Account
    key: Key | None = None

    @property
    def key_id(self) -> str:
        return self.key.key_id if self.key else ""


class Ask(msgspec.Struct, frozen=True):
    """What a call wants to hold. Ids are checked, amounts in range."""

    call_id: str
    run_id: str
    runner: str
    amount_nano_usd: int
    rate_tokens: int
    price_book_version: str = ""
    idempotency_key: str = ""
    body_sha256: bytes = b""


class Admitted(msgspec.Struct, frozen=True):
    """The call may run. `is_repeat`: the same run was admitted before."""

    hold: Hold
    limits: LimitsView
    is_repeat: bool = False


class Refused(msgspec.Struct, frozen=True):
    """The call may not run; nothing was taken. `retry_in_us` None: waiting does not help, or nobody can tell."""

    reason: Reason
    limits: LimitsView
    retry_in_us: int | None = None
    ceiling: int | None = None
    available_nano_usd: int | None = None


class Earlier(msgspec.Struct, frozen=True):
    """An idempotency key stands for this other call. `is_posted`: it is over, its answer can be replayed."""

    call_id: str
    is_posted: bool
    limits: LimitsView


Verdict = Admitted | Refused | Earlier


class OutOfCredit(msgspec.Struct, frozen=True):
    """A hold could not be extended."""

    available_nano_usd: int


class Finished(msgspec.Struct, frozen=True):
    """How a running call ended. None: not known (yet)."""

    call_id: str
    run_id: str
    cost_nano_usd: int | None
    used_tokens: int | None
    account_id: str = ""


class Balance(msgspec.Struct, frozen=True):
    """An account's balance, absolute, as metering numbered it."""

    account_id: str
    seq: int
    balance_nano_usd: int
    lifetime_paid_nano_usd: int
    closed_call_ids: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """What metering has on record for a call: posted with a charge, or void."""

    is_posted: bool
    charged_nano_usd: int = 0
