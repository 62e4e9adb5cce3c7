"""What metering needs from its store and from auth-and-limits, as Protocols.

Owns the promises; refuses to hold code. A job runs inside one durable transaction and never awaits.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol, TypeVar

from services.metering.charging import Charge, UsageEvent
from services.metering.ledger import Customer, PromotionTerms, Transfer
from services.metering.pricing import PriceBook, TokenUsage

T = TypeVar("T")


class PostedCall(NamedTuple):
    """What is on record for a call."""

    call_id: str
    rule: str
    charged_nano_usd: int
    usage: TokenUsage
    account_id: str = ""


class Footprint(NamedTuple):
    """What a job will read and lock, said before it runs, so that a store can fetch it for a whole group at once.

    A store may ignore it. A job that says nothing is run as if it touched everything.
    """

    account_ids: Collection[str] = ()
    call_ids: Collection[str] = ()
    marks_void: bool = False


class Rejection(NamedTuple):
    """An event that breaks a rule, kept for people to look at."""

    call_id: str  # as sent, whatever it is
    detail: str
    event_json: str


class GrantRecord(NamedTuple):
    """A credit under its idempotency key."""

    account_id: str
    idempotency_key: str
    kind: str
    expires_at_us: int | None
    balance_nano_usd: int  # right after it
    transfer: Transfer


class UsageRecord(NamedTuple):
    """A call on record."""

    row_id: int
    event: UsageEvent
    charge: Charge
    recorded_at_us: int


class BalanceEvent(NamedTuple):
    """A balance fell below a threshold."""

    account_id: str
    threshold_nano_usd: int
    balance_nano_usd: int  # after the transfer that crossed it
    occurred_at_us: int


class KeptAnswer(NamedTuple):
    """The folded answer of a call under an idempotency key. It is what a user was told: it has no text form."""

    idempotency_key: str
    body_sha256: bytes
    form: str
    message: bytes  # empty: too large to be kept

    def __repr__(self) -> str:
        return f"KeptAnswer({len(self.message)} bytes)"


class KeptAnswerRecord(NamedTuple):
    """A kept answer on record."""

    account_id: str
    call_id: str
    answer: KeptAnswer
    kept_until_us: int


class BalanceNotice(NamedTuple):
    """A row of the outbox: what auth-and-limits has to hear about an account."""

    row_id: int  # grows with every commit
    account_id: str
    seq: int
    balance_nano_usd: int
    lifetime_paid_nano_usd: int
    closed_call_ids: tuple[str, ...]


class LedgerTransaction(Protocol):
    """One transaction on the ledger. All of a job's effects become durable together, or none does.

    Customers that a job changed are saved by themselves, each with its next `seq` and a row in the outbox.
    """

    def posted_calls(self, call_ids: Sequence[str]) -> dict[str, PostedCall]:
        """Those of the calls that are posted, by id."""

    def void_calls(self, call_ids: Sequence[str]) -> set[str]:
        """Those of the calls that have a void marker."""

    def price_book(self, version: str) -> PriceBook | None:
        """A registered price book, or None."""

    def add_price_book(self, version: str, canonical_json: str, now_us: int) -> None:
        """Registers a price book; a known version changes nothing."""

    def customer(self, account_id: str) -> Customer:
        """The customer's state, to be changed in place; the same object for the whole transaction."""

    def add_transfer(self, transfer: Transfer, account_id: str) -> None:
        """Appends a transfer that has already been applied to the customer."""

    def add_usage(self, event: UsageEvent, charge: Charge, now_us: int) -> None:
        """Appends a call's record and tells auth-and-limits that its hold is closed."""

    def add_void_markers(self, call_ids: Collection[str], now_us: int) -> None:
        """Marks calls as void, for ever."""

    def add_rejection(self, rejection: Rejection, now_us: int) -> bool:
        """Keeps a bad event. Returns False if the very same one is kept already."""

    def grant(self, account_id: str, idempotency_key: str) -> GrantRecord | None:
        """The credit that was granted under a key, or None."""

    def add_grant(self, grant: GrantRecord) -> None:
        """Appends a credit's record; its transfer is added on its own."""

    def transfer_of(self, transfer_id: str, account_id: str) -> Transfer | None:
        """A transfer of this customer, or None."""

    def taken_back_nano_usd(self, transfer_id: str) -> int:
        """The sum of the transfers whose `reference` is this one: its corrections, and the end of a promotion."""

    def add_balance_event(self, event: BalanceEvent) -> None:
        """Appends a crossing of a threshold, for ever, and until it is announced to the rows that wait for it.

        Rare: only a balance that falls below a threshold makes one.
        """

    def unannounced_balance_events(self, limit: int) -> list[tuple[int, BalanceEvent]]:
        """The oldest crossings that wait to be announced, each with its row."""

    def forget_balance_events(self, row_ids: Sequence[int]) -> None:
        """Lets announced crossings wait no more. They stay on record."""

    def keep_answer(self, record: KeptAnswerRecord, now_us: int) -> str:
        """Keeps an answer under its account and key, in the place of one that is over; returns the call that the key
        stands for then: the record's, or another one whose answer is kept already.

        Of two transactions that keep different calls under one key, one sees the other's: it waits for it if need be.
        """

    def kept_answer(self, account_id: str, idempotency_key: str) -> KeptAnswerRecord | None:
        """What is kept under a key, or None."""

    def forget_answers(self, until_us: int, limit: int) -> int:
        """Deletes answers that are kept until this instant or less. Returns how many."""

    def accounts_with_due_promotions(self, now_us: int, limit: int) -> list[str]:
        """Accounts that have an expired promotion with something left."""

    def notice_mark(self, account_id: str) -> int:
        """Saves the changed customers and returns the account's newest row in the outbox, 0 for none."""


class Span(NamedTuple):
    """A stretch of time in Unix microseconds, its end excluded."""

    since_us: int
    until_us: int


class PageQuery(NamedTuple):
    """Which page of an account's entries: those older than a position, newest first."""

    account_id: str
    call_id: str  # empty: all
    before: tuple[int, int] | None  # (instant, row) of the last one seen
    limit: int


class EntryRow(NamedTuple):
    """A transfer and its place in the ledger."""

    row_id: int
    transfer: Transfer


class LedgerStore(Protocol):
    """The durable store. Writes are committed in groups; reads run beside them on their own connections.

    Every method raises StoreUnavailableError when the store fails or does not answer in time. A write that did not
    answer in time may still land: every job is idempotent, so its caller resends it.
    """

    def on_commit(self, notify: Callable[[], None]) -> None:
        """Calls `notify` whenever something was committed, also when nobody waited for it any more."""

    async def commit(
        self,
        job: Callable[[LedgerTransaction], T],
        timeout_s: float | None = None,
        footprint: Footprint | None = None,
    ) -> T:
        """Runs a job in a transaction that it may share with other jobs; returns once it is durable.

        A job that raises leaves nothing behind, and its exception reaches the caller. Without `timeout_s` the store's
        own limit for the path of a call holds. A job may be run again from the start when replicas collide.
        """

    def commit_soon(self, job: Callable[[LedgerTransaction], object]) -> None:
        """Runs a job with the next group, at the latest after a second. For work that may be lost and repeated."""

    async def customer(self, account_id: str) -> Customer:
        """A customer as committed; one without entries has zero everywhere."""

    async def entries(self, query: PageQuery) -> list[EntryRow]:
        """A customer's transfers, newest first."""

    async def notices(self, after_row_id: int, limit: int) -> list[BalanceNotice]:
        """Rows of the outbox after a row, oldest first, whoever delivers them."""

    def claim_notices(self, limit: int) -> AbstractAsyncContextManager["NoticeClaim"]:
        """Takes the oldest rows of the outbox that no other replica has taken; what is not delivered is given back."""

    async def is_delivered(self, mark: int) -> bool:
        """Whether a row of the outbox, and what it says of its account, has been acknowledged."""

    async def inspect(self, inspection: "Callable[[LedgerSnapshot], T]") -> T:
        """Runs a reading job on one consistent snapshot, beside everything else, however long it takes."""


class NoticeClaim(Protocol):
    """Rows of the outbox that this process alone delivers while it holds the claim."""

    @property
    def notices(self) -> Sequence[BalanceNotice]:
        """The rows, oldest first."""

    async def delivered(self, notices: Sequence[BalanceNotice], acknowledged_seqs: Mapping[str, int]) -> None:
        """These first rows of the claim are known to auth-and-limits: they may be deleted."""


class CustomerRow(NamedTuple):
    """A customer's stored projection."""

    account_id: str
    balance_nano_usd: int
    lifetime_paid_nano_usd: int
    promotional_nano_usd: int
    seq: int
    announced_seq: int  # the newest that was acknowledged or waits in the outbox


class AuditedCall(NamedTuple):
    """Everything on record about one call id."""

    record: UsageRecord
    transfer: Transfer | None
    is_marked_void: bool


class LedgerSnapshot(Protocol):
    """A consistent view of everything on record, for checking. Empty `account_id` means all accounts."""

    def price_books(self) -> Mapping[str, PriceBook]:
        """Every registered book, by version."""

    def balance_total(self) -> int:
        """All stored balances together."""

    def differing_balances(self, account_id: str) -> Iterator[tuple[str, int, int]]:
        """(ledger account, what its transfers say, what is stored) where these differ, by account.

        For one customer its own ledger account alone: its transfers say nothing of the counterparts' balances.
        """

    def customers(self, account_id: str) -> Iterator[CustomerRow]:
        """Stored projections of the customers, by account id."""

    def transfers(self, account_id: str) -> Iterator[Transfer]:
        """All transfers of one customer in the order of posting."""

    def transfer_count(self, account_id: str) -> int:
        """How many transfers there are."""

    def impossible_transfers(self, account_id: str) -> Iterator[Transfer]:
        """Transfers that the rules of the store forbid: amount not above zero, both sides the same."""

    def promotion_terms(self, account_id: str) -> list[PromotionTerms]:
        """The terms of one customer's promotions."""

    def remaining_promotions(self, account_id: str) -> dict[str, int]:
        """What the stored projection says is left of one customer's promotions, without the empty ones."""

    def calls(self, account_id: str) -> Iterator[AuditedCall]:
        """Every call on record with what belongs to it."""

    def postings_without_usage(self, account_id: str) -> Iterator[Transfer]:
        """Transfers of calls that have no usage record."""

    def double_postings(self, account_id: str) -> Iterator[tuple[str, int]]:
        """Call ids on record more than once, with how often."""

    def unexplained_grants(self, account_id: str) -> Iterator[str]:
        """Ids of grant transfers without their record, and of records without their transfer."""

    def false_notices(self, account_id: str) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
        """(account, (balance, lifetime paid), what the outbox says) where its row of the newest seq says otherwise."""


class BalanceListener(Protocol):
    """auth-and-limits, as the outbox sees it."""

    async def balances_changed(self, notices: Sequence[BalanceNotice]) -> None:
        """Hands over changes; returns once they are durable there. Raises GatewayError otherwise."""
