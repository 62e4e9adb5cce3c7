"""An account with a past: months of calls under many keys, applications, profiles and upstreams, and other entries.

Owns the events and the order in which they are written; refuses to assert anything.
"""

import random
from collections.abc import Sequence

from services.metering import reversals
from services.metering.charging import Ending, UsageEvent
from services.metering.granting import Granted
from services.metering.ledger import CreditKind
from services.metering.ports import LedgerStore
from services.metering.pricing import ProfilePrice, TokenUsage, price_book_version
from services.metering.reversals import Correction, Refund
from services.metering.usage import Moment
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, DAY_US, PRICES, Bookkeeper, a_credit, an_event

CODER = ProfilePrice("dragon-coder", 480, 1080, cache_read_nano_usd=48, cache_write_1h_nano_usd=960)
BOOK = [*PRICES, CODER]
BOOK_VERSION = price_book_version(BOOK)
START_US = 1_790_812_800_000_000  # 2026-10-01T00:00:00Z
DOLLAR = 1_000_000_000


class Past:
    """Writes an account's past at instants that it sets."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._now_us = START_US
        self._books = Bookkeeper(store, lambda: self._now_us)

    async def credit(self, kind: CreditKind, amount_nano_usd: int, at_us: int, expires_at_us: int | None = None) -> str:
        """Grants a credit; returns its entry's id."""
        self._now_us = at_us
        credit = a_credit(kind=kind, amount_nano_usd=amount_nano_usd, expires_at_us=expires_at_us)
        return (await self._books.grant(credit)).record.transfer.transfer_id

    async def calls(self, events: Sequence[UsageEvent], at_us: int) -> None:
        """Records calls at an instant."""
        self._now_us = at_us
        await self._books.record(*events)

    async def refund(self, amount_nano_usd: int, at_us: int) -> Granted:
        """Pays money back."""
        request = Refund(ACCOUNT, new_id(), amount_nano_usd, "receipt")
        return await self._store.commit(
            lambda transaction: reversals.refund(transaction, request, Moment(at_us, new_id))
        )

    async def correct(self, entry_id: str, amount_nano_usd: int, at_us: int) -> Granted:
        """Takes an entry back."""
        request = Correction(ACCOUNT, new_id(), entry_id, amount_nano_usd)
        return await self._store.commit(
            lambda transaction: reversals.correct(transaction, request, Moment(at_us, new_id))
        )

    async def sweep(self, at_us: int) -> None:
        """Ends expired promotions."""
        self._now_us = at_us
        await self._books.sweep()

    async def register(self) -> None:
        """Registers the price book of the past."""
        await self._books.register(BOOK)


def a_call(dice: random.Random, account_id: str = ACCOUNT) -> UsageEvent:
    """Any call."""
    profile = dice.choice(["dragon", "dragon-coder"])
    reported = TokenUsage(
        dice.randrange(5_000),
        dice.randrange(2_000),
        cache_read_tokens=dice.choice([None, 0, 700]) if profile == "dragon-coder" else None,
        cache_write_1h_tokens=dice.choice([None, 90]) if profile == "dragon-coder" else None,
    )
    return an_event(
        account_id=account_id,
        key_id=dice.choice(["key-1", "key-2", ""]),
        application=dice.choice(["", "crm", "=cmd()", 'a,b\n"c"']),
        profile=profile,
        upstream=dice.choice(["primary", "backup", ""]),
        requested_model=dice.choice(["claude-sonnet-4-6", "mws_live_abcdefghijklmnop"]),
        ending=dice.choice([Ending.COMPLETE, Ending.COMPLETE, Ending.CUT, Ending.FAILED_BEFORE_CONTENT]),
        price_book_version=BOOK_VERSION,
        reported=reported,
        delivered=TokenUsage(dice.randrange(5_000), dice.randrange(2_000)),
    )


async def write_past(store: LedgerStore, calls: int = 150) -> None:
    """From October 2026 to January 2027: calls on every second day, credits of all kinds, refunds and corrections."""
    dice, past = random.Random(1), Past(store)
    await past.register()
    bought = await past.credit(CreditKind.PURCHASE, 5 * DOLLAR, START_US)
    await past.credit(CreditKind.PROMOTION, DOLLAR // 100, START_US + DAY_US, START_US + 40 * DAY_US)
    await past.credit(CreditKind.PROMOTION, DOLLAR, START_US + DAY_US, START_US + 50 * DAY_US)
    given = await past.credit(CreditKind.REFUND, DOLLAR // 3, START_US + 31 * DAY_US)  # the first instant of November
    days, share = 100, calls // 50
    for day in range(0, days, 2):
        instant = START_US + day * DAY_US + dice.randrange(DAY_US)
        await past.calls([a_call(dice) for _ in range(share)] + [a_call(dice, "another account")], instant)
    await past.sweep(START_US + 51 * DAY_US)
    await past.refund(DOLLAR, START_US + 61 * DAY_US - 1)  # the last instant of November
    await past.correct(given, 1_000, START_US + 62 * DAY_US)
    await past.correct(bought, 2_000, START_US + 63 * DAY_US)
