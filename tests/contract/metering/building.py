"""Values for metering's tests: events, prices, a ledger in a folder.

Owns defaults that a test states its difference from; refuses to assert anything.
"""

from collections.abc import Callable, Sequence
from typing import Any

from services.metering import granting, usage
from services.metering.charging import Ending, UsageEvent
from services.metering.granting import Credit, Granted
from services.metering.ledger import CreditKind
from services.metering.ports import LedgerStore, Rejection
from services.metering.pricing import ProfilePrice, TokenUsage, canonical_json, price_book_version
from services.metering.usage import Moment, RecordOutcome
from services.runtime.ids import new_id

DRAGON = ProfilePrice("dragon", 480, 1080)
RERANKER = ProfilePrice("reranker", search_unit_nano_usd=2_000_000)
PRICES = [DRAGON, RERANKER]
VERSION = price_book_version(PRICES)
NOW_US = 1_790_000_000_000_000
DAY_US = 86_400_000_000
ACCOUNT = "0199b000-0000-7000-8000-000000000001"


def an_id(instant_us: int = NOW_US) -> str:
    """A fresh UUIDv7 that was minted then."""
    digits = f"{instant_us // 1_000:012x}"
    return f"{digits[:8]}-{digits[8:]}{new_id()[13:]}"


def an_event(**changes: Any) -> UsageEvent:
    """A complete call of 10 tokens in and 20 out: 26,400 nano-USD on Dragon."""
    defaults: dict[str, Any] = {
        "call_id": an_id(changes.get("started_at_us", NOW_US)),
        "account_id": ACCOUNT,
        "key_id": "key-1",
        "application": "",
        "operation": "generate",
        "profile": "dragon",
        "requested_model": "claude-sonnet-4-6",
        "upstream": "primary",
        "attempt": 1,
        "price_book_version": VERSION,
        "ending": Ending.COMPLETE,
        "reported": TokenUsage(10, 20),
        "delivered": TokenUsage(11, 22),
        "upstream_accepted": True,
        "held_nano_usd": 1_000_000_000,
        "started_at_us": NOW_US - 1_000_000,
        "ended_at_us": NOW_US,
    }
    return UsageEvent(**(defaults | changes))


def a_credit(**changes: Any) -> Credit:
    """A purchase of one dollar under a fresh key."""
    defaults: dict[str, Any] = {
        "account_id": ACCOUNT,
        "idempotency_key": new_id(),
        "amount_nano_usd": 1_000_000_000,
        "kind": CreditKind.PURCHASE,
        "expires_at_us": None,
    }
    return Credit(**(defaults | changes))


class Bookkeeper:
    """Runs the use cases against a store at a time that the test sets."""

    def __init__(self, store: LedgerStore, now_us: Callable[[], int] = lambda: NOW_US) -> None:
        self.store = store
        self._now_us = now_us

    async def register(self, prices: Sequence[ProfilePrice] = PRICES) -> None:
        """Registers a price book."""
        version, text, now_us = price_book_version(prices), canonical_json(prices), self._now_us()
        await self.store.commit(lambda transaction: transaction.add_price_book(version, text, now_us))

    async def record(self, *events: UsageEvent | Rejection) -> list[RecordOutcome]:
        """Records events as one batch."""
        moment = Moment(self._now_us(), new_id)
        return await self.store.commit(lambda transaction: usage.record(transaction, events, moment))

    async def resolve(self, *call_ids: str) -> list[str]:
        """How calls ended: `posted` or `void`."""
        now_us = self._now_us()
        outcomes = await self.store.commit(lambda transaction: usage.resolve(transaction, call_ids, now_us))
        return ["void" if outcome is None else "posted" for outcome in outcomes]

    async def grant(self, credit: Credit) -> Granted:
        """Grants a credit."""
        now_us = self._now_us()
        return await self.store.commit(lambda transaction: granting.grant(transaction, credit, now_us, new_id))

    async def sweep(self) -> int:
        """Ends expired promotions."""
        now_us = self._now_us()
        return await self.store.commit(lambda transaction: granting.sweep(transaction, now_us, new_id))

    async def balance(self, account_id: str = ACCOUNT) -> tuple[int, int, int]:
        """(balance, lifetime paid, promotional) of an account."""
        customer = await self.store.customer(account_id)
        return customer.balance_nano_usd, customer.lifetime_paid_nano_usd, customer.promotional_nano_usd
