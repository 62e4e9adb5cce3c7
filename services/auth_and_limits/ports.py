"""What this service needs of the world.

Owns the promises, in docstrings; holds no code. All may raise StoreUnavailableError: down, or slow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from services.auth_and_limits.holds import Hold
from services.auth_and_limits.limits import LimitsView
from services.auth_and_limits.records import (
    Account,
    Ask,
    AuditEvent,
    Balance,
    Finished,
    Key,
    Outcome,
    OutOfCredit,
    Payer,
    Team,
    Verdict,
)
from services.auth_and_limits.tiers import Ceilings

T = TypeVar("T")
Edit = Callable[[T], tuple[T, AuditEvent | None]]
"""What becomes of a record, and the event for it; no event means that nothing changes. Runs inside the transaction."""


class HoldStore(Protocol):
    """Buckets, holds and hot balances. A method is one atomic step, durable when it returns; a failure took nothing.

    A store that several processes share keeps a hold under its account, so it needs the account of every hold.
    """

    @property
    def is_healthy(self) -> bool:
        """Whether admissions can be made and kept at present."""

    @property
    def open_holds(self) -> int:
        """Holds of calls that run, as of the last look."""

    async def admit(self, ask: Ask, payer: Payer) -> Verdict:
        """Takes all that is asked for, or nothing. Idempotent by (call id, run id) while the hold lives.

        Raises CallAlreadyAdmittedError for another run of the call id, for ever, unless it is refused for another
        reason first; IdempotencyKeyReusedError.
        """

    async def extend(self, call_id: str, run_id: str, amount_nano_usd: int, account_id: str = "") -> Hold | OutOfCredit:
        """Raises the amount of an OPEN hold to an absolute one. Raises HoldNotOpenError."""

    async def renew(self, runner: str, holds: Sequence[Hold]) -> Sequence[str]:
        """Gives each hold a whole lease from now, recreates lost ones. Returns ids that are closed or another run's."""

    async def finish(self, finished: Sequence[Finished]) -> None:
        """Frees slots, corrects tokens, shrinks amounts. Unknown, closed and foreign holds are passed over."""

    async def void(self, call_id: str, run_id: str, account_id: str = "") -> None:
        """Releases an OPEN hold as if it had never been. Raises HoldNotOpenError: finished, posted, another run's."""

    async def limits(self, payer: Payer) -> LimitsView:
        """What may be done now. Takes nothing."""

    async def ceilings(self, account: Account) -> Ceilings:
        """The ceilings in force now."""

    async def lifetime_paid_nano_usd(self, account_id: str) -> int:
        """Purchases of the account, as far as metering has told."""

    async def change_balances(self, balances: Sequence[Balance]) -> None:
        """Takes over each balance that is newer than the known one; closes the holds of all of them."""

    async def closed(self, call_id: str, account_id: str | None) -> Hold:
        """Waits until a hold is closed. Raises NotFoundError: unknown, or not of `account_id` where one is given."""

    async def expired(self, at_most: int) -> Sequence[str]:
        """Calls whose lease has run out, some at each look. Of processes that share a store, one is told."""

    def lease_until_unix_us(self, hold: Hold) -> int:
        """A hold's lease by the wall clock."""

    async def settle(self, outcomes: Mapping[str, Outcome]) -> None:
        """Ends holds whose lease is still run out: releases void ones, closes posted ones once their balance came."""

    async def forget_old(self) -> None:
        """Drops what nobody may ask for any more."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What is different since an earlier revision, as it is now. `is_reset`: the store went back; forget all."""

    revision: int
    accounts: Sequence[Account]
    keys: Sequence[Key]
    ended_team_ids: Sequence[str]
    is_reset: bool = False


class ChangeFeed(Protocol):
    """What other replicas change, and how far this process knows of it."""

    @property
    def is_healthy(self) -> bool:
        """Whether the store answers at present."""

    @property
    def is_fresh(self) -> bool:
        """Whether a decision may trust what is in memory."""

    async def refresh(self) -> None:
        """Waits until it may, 250 ms at most. Never raises: what cannot be asked cannot have been changed either."""

    def follow(self, apply: Callable[[Changed], None]) -> None:
        """Hands over every change from now on, before the change's maker is told that it is done."""


class Alone:
    """The `ChangeFeed` of a process that shares its store with nobody."""

    is_healthy = True
    is_fresh = True

    async def refresh(self) -> None:
        return

    def follow(self, apply: Callable[[Changed], None]) -> None:
        return


class AccountStore(Protocol):
    """Accounts, keys, teams, audit log. A change and its audit event are written together, durably."""

    async def key_by_digest(self, stored_digest: bytes) -> tuple[Account, Key] | None:
        """The key with that digest, whatever its state. Answers within 250 ms."""

    async def account(self, account_id: str) -> Account | None:
        """The account. Answers within 250 ms."""

    async def team_by_subject(self, issuer: str, subject: str) -> Team | None:
        """The team. Answers within 250 ms."""

    async def create_account(self, account: Account, request_id: str, content: bytes, event: AuditEvent) -> Account:
        """Creates it, or returns the one that the request id made. Raises AlreadyExistsError for another content."""

    async def accounts(self, name: str, after_id: str, at_most: int) -> Sequence[Account]:
        """Accounts by rising id, after one; only those of that name if it is not empty."""

    async def edit_account(self, account_id: str, edit: Edit[Account]) -> Account:
        """Replaces an account by what `edit` makes of it, in one transaction. Raises NotFoundError."""

    async def create_key(
        self, key: Key, stored_digest: bytes, event: AuditEvent, request_id: str = "", content: bytes = b""
    ) -> Key:
        """Creates it, or returns the one that the account's request id made, if there is one.

        Raises AlreadyExistsError for another content.
        """

    async def keys(self, account_id: str, after_id: str, at_most: int) -> Sequence[Key]:
        """Keys of an account by rising id, after one."""

    async def edit_key(self, key_id: str, edit: Edit[Key]) -> Key:
        """Replaces a key by what `edit` makes of it, in one transaction. Raises NotFoundError."""

    async def note_uses(self, last_used_at_ms: Mapping[str, int]) -> None:
        """Writes when keys were last used, by key id; never an earlier instant over a later one. Leaves no event."""

    async def create_team(self, team: Team, event: AuditEvent) -> Team:
        """Creates it, or returns the one that exists. Raises AlreadyExistsError: it acts for another account."""

    async def teams(self, account_id: str, after_id: str, at_most: int) -> Sequence[Team]:
        """Teams of an account by rising id, after one."""

    async def delete_team(self, team_id: str, event: AuditEvent) -> Team | None:
        """Deletes it, filling in the event's account. None: deleted before. Raises NotFoundError: never there."""

    async def audit_events(self, account_id: str, before_id: str, at_most: int) -> Sequence[AuditEvent]:
        """Events by falling id, before one if it is not empty; only those of the account if it is not empty."""

    async def changed_since(self, revision: int) -> Changed:
        """All records whose last change is numbered above the revision."""


class OutcomeSource(Protocol):
    """Metering, asked how calls ended."""

    async def resolve(self, call_ids: Sequence[str]) -> Mapping[str, Outcome]:
        """The outcomes that are certain. At most 1,000 ids. Raises GatewayError when it cannot tell."""


class BalanceSource(Protocol):
    """Metering, asked what accounts have."""

    async def balances(self, account_ids: Sequence[str]) -> Sequence[Balance]:
        """One for each account; `seq` 0: nothing was ever posted for it. Raises GatewayError when it cannot tell."""


class TokenVerifier(Protocol):
    """Access tokens of teams."""

    async def verify(self, token: str) -> tuple[str, str]:
        """(issuer, subject) of a valid token. Raises InvalidCredentialError; StoreUnavailableError without keys."""
