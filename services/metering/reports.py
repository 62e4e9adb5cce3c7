"""What people read of the ledger and of usage, as a Protocol: sums, calls, credits, statements, exports.

Owns the promises; refuses to hold code. The ledger itself is in ports.py.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from services.metering.ledger import Transfer
from services.metering.ports import BalanceEvent, EntryRow, GrantRecord, Span, UsageRecord
from services.metering.pricing import PriceBook, TokenUsage

Position = tuple[int, int]
"""(instant in microseconds, row)."""


class UsageSelection(NamedTuple):
    """Which calls. Every list that is not empty must have the call's value."""

    account_id: str  # empty: of all accounts
    span: Span  # of the instant of recording
    key_ids: tuple[str, ...] = ()
    applications: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


class GroupedSum(NamedTuple):
    """Calls, tokens and money of a group, and of a group within it."""

    group: str
    then_group: str
    calls: int
    usage: TokenUsage
    charged_nano_usd: int


class CallOnRecord(NamedTuple):
    """A call with its prices and its transfers: the charge, then what corrects it."""

    record: UsageRecord
    price_book: PriceBook
    transfers: tuple[Transfer, ...]


class CreditOnRecord(NamedTuple):
    """A credit and what became of it."""

    row_id: int
    grant: GrantRecord
    remaining_nano_usd: int | None  # of a promotion
    taken_back_nano_usd: int


class BalanceEventRow(NamedTuple):
    """A crossing and its place."""

    row_id: int
    event: BalanceEvent


class StatementFacts(NamedTuple):
    """What a statement is made of, as one consistent view."""

    opening_nano_usd: int
    entries: tuple[tuple[str, str, bool, int, int], ...]  # rule, counterpart, of a call?, how many, signed sum
    usage: tuple[GroupedSum, ...]  # by profile
    closing_nano_usd: int


class Reports(Protocol):
    """What people read: may scan much, so it has connections of its own and never stands in the way of a call.

    Every method is one consistent view, and raises StoreUnavailableError when the store fails or takes too long.
    Positions are (instant, row); `before` lists newest first, `after` oldest first.
    """

    async def sums(self, selection: UsageSelection, groupings: tuple[str, str]) -> list[GroupedSum]:
        """Sums by two of `account`, `profile`, `key`, `application`, `upstream`, `day`, `hour` and `total`."""

    async def usage(
        self, selection: UsageSelection, call_id: str, before: Position | None, limit: int
    ) -> list[UsageRecord]:
        """Calls, newest first; of one id, if it is not empty."""

    async def call(self, call_id: str, account_id: str) -> CallOnRecord | None:
        """A call of this account, or of any if it is empty; None if there is none."""

    async def credits(self, account_id: str, before: Position | None, limit: int) -> list[CreditOnRecord]:
        """Grants, newest first."""

    async def balance_events(self, account_id: str, before: Position | None, limit: int) -> list[BalanceEventRow]:
        """Crossings, newest first."""

    async def statement(self, account_id: str, span: Span) -> StatementFacts:
        """Everything that happened to a balance in a span."""

    async def exported_calls(self, account_id: str, span: Span, after: Position, limit: int) -> list[UsageRecord]:
        """Calls, oldest first."""

    async def exported_entries(self, account_id: str, span: Span, after: Position, limit: int) -> list[EntryRow]:
        """Transfers that are no calls, oldest first."""

    async def export_size(self, account_id: str, span: Span) -> int:
        """How many calls and other transfers there are."""

    async def price_books(self) -> Mapping[str, PriceBook]:
        """Every registered book, by version."""
