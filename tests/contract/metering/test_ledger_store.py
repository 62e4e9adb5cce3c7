"""What every ledger promises, in a file and in a database: groups, durability, resends; bad input leaves nothing.

Owns the port's contract; what replicas do to each other is in test_replicas.py.
"""

import asyncio
import functools
import threading
from collections.abc import Callable

import pytest

from services.metering import checking, usage
from services.metering.charging import UsageEvent
from services.metering.granting import Credit
from services.metering.ledger import CreditKind, Transfer
from services.metering.ports import LedgerTransaction, Rejection
from services.metering.pricing import TokenUsage
from services.metering.usage import Moment, OutcomeKind
from services.runtime.errors import AlreadyExistsError, GatewayError, InvalidRequestError, StoreUnavailableError
from services.runtime.ids import new_id
from tests.contract.metering.building import (
    ACCOUNT,
    DAY_US,
    NOW_US,
    VERSION,
    Bookkeeper,
    a_credit,
    an_event,
    an_id,
)
from tests.contract.metering.places import ClosableStore, Place

COST = 26_400


async def test_a_job_that_raises_leaves_nothing_and_harms_no_other(keeper: Bookkeeper, ledger: ClosableStore) -> None:
    gate = threading.Event()

    def wait(_: LedgerTransaction) -> None:
        assert gate.wait(10)

    def spoil(transaction: LedgerTransaction) -> None:
        transaction.customer(ACCOUNT).receive(CreditKind.PURCHASE, 1)
        transaction.add_void_markers(["0199b000-0000-7000-8000-00000000dead"], NOW_US)
        raise KeyError("of its own making")

    first = asyncio.ensure_future(ledger.commit(wait))
    await asyncio.sleep(0)
    group = asyncio.gather(
        keeper.record(an_event()), ledger.commit(spoil), keeper.grant(a_credit()), return_exceptions=True
    )
    await asyncio.sleep(0)
    gate.set()
    await first
    outcomes = await group

    assert [list, KeyError] == [type(outcome) for outcome in outcomes[:2]]
    assert await keeper.balance() == (1_000_000_000 - COST, 1_000_000_000, 0)
    assert set() == await ledger.commit(lambda tx: tx.void_calls(["0199b000-0000-7000-8000-00000000dead"]))


async def test_a_write_that_was_too_slow_may_land_and_its_resend_finds_it(place: Place) -> None:
    async with place.open() as store:
        books = Bookkeeper(store)
        await books.register()
        event, gate = an_event(), threading.Event()
        blocked = asyncio.ensure_future(store.commit(lambda _: gate.wait(10)))
        await asyncio.sleep(0)
        moment = Moment(NOW_US, new_id)
        with pytest.raises(StoreUnavailableError):
            await store.commit(lambda tx: usage.record(tx, [event], moment), 0.01)
        gate.set()
        await blocked

        (outcome,) = await books.record(event)

        assert (outcome.is_repeated, outcome.charged_nano_usd) == (True, COST)


async def test_work_for_later_runs_with_the_next_group_and_survives_a_close(place: Place) -> None:
    async with place.open() as store:
        await Bookkeeper(store).grant(a_credit())
        async with store.claim_notices(10) as claim:
            await claim.delivered(claim.notices, {ACCOUNT: 1})

    async with place.open() as store:
        assert await store.notices(0, 10) == []


async def test_everything_committed_is_there_after_a_reopen(place: Place) -> None:
    event = an_event()
    async with place.open() as store:
        books = Bookkeeper(store)
        await books.register()
        first = (await books.record(event))[0]

    async with place.open() as store:
        books = Bookkeeper(store)
        (again,) = await books.record(event)

        assert first._replace(is_repeated=True) == again
        assert await books.balance() == (-COST, 0, 0)


async def test_expired_promotions_end_at_a_touch_and_by_the_sweeper(ledger: ClosableStore) -> None:
    now = [NOW_US]
    books = Bookkeeper(ledger, lambda: now[0])
    await books.register()
    soon = {"kind": CreditKind.PROMOTION, "amount_nano_usd": 100_000, "expires_at_us": NOW_US + DAY_US}
    for account_id in ("touched", "swept"):
        await books.grant(a_credit(account_id=account_id, **soon))
        await books.record(an_event(account_id=account_id))
    now[0] += DAY_US

    before = await books.balance("touched")
    await books.record(an_event(account_id="touched"))
    swept = [await books.sweep(), await books.sweep()]

    assert before == (100_000 - COST, 0, 100_000 - COST)
    assert swept == [1, 0]
    assert (await books.balance("touched"), await books.balance("swept")) == ((-COST, 0, 0), (0, 0, 0))


async def test_an_unknown_book_is_none_and_a_known_one_reads_back(keeper: Bookkeeper, ledger: ClosableStore) -> None:
    found, missing = await ledger.commit(lambda tx: (tx.price_book(VERSION), tx.price_book("0" * 64)))

    assert found is not None
    assert (sorted(found), missing) == (["dragon", "reranker"], None)


# ---- bad input: a typed refusal, and nothing written ----


async def nothing_but(keeper: Bookkeeper, ledger: ClosableStore, place: Place, calls: int) -> None:
    """So many calls of the account are on record and paid, and nothing else is."""
    report = await ledger.inspect(lambda snapshot: checking.check(snapshot, ""))
    assert report.violations == ()
    assert (report.checked_transfers, report.checked_usage_events) == (calls, calls)
    assert await keeper.balance() == (-calls * COST, 0, 0)
    customers = await place.rows("SELECT account FROM balances WHERE seq > 0")
    assert [account for (account,) in customers] == [f"customer:{ACCOUNT}"] * min(calls, 1)


def foreign(event: UsageEvent) -> UsageEvent:
    return event._replace(account_id="somebody else")


def unknown_profile(event: UsageEvent) -> UsageEvent:
    return event._replace(call_id=an_id(), profile="unknown")


def unmeasured(event: UsageEvent) -> UsageEvent:
    return event._replace(call_id=an_id(), reported=TokenUsage(), delivered=TokenUsage())


def beyond_any_charge(event: UsageEvent) -> UsageEvent:
    return event._replace(call_id=an_id(), reported=TokenUsage(1, 10**16))


async def test_events_that_cannot_be_posted_are_rejected_beside_good_ones(
    keeper: Bookkeeper, ledger: ClosableStore, place: Place
) -> None:
    event, other = an_event(), an_event()
    await keeper.record(event)
    bad = [change(event) for change in (foreign, unknown_profile, unmeasured, beyond_any_charge)]
    raw = [Rejection("not an id", "call_id is not UUIDv7 text", "{}"), Rejection("\0", "it has a NUL", '{"a": 1}')]

    *refused, posted = await keeper.record(*bad, *raw, other)
    again = await keeper.record(*bad, *raw)

    assert [(each.kind, each.is_repeated) for each in refused] == [(OutcomeKind.REJECTED, False)] * 6
    assert [(each.kind, each.is_repeated) for each in again] == [(OutcomeKind.REJECTED, True)] * 6
    assert (posted.kind, posted.is_repeated) == (OutcomeKind.POSTED, False)
    assert await place.rows("SELECT count(*) FROM rejected_events") == [(6,)]
    await nothing_but(keeper, ledger, place, calls=2)


async def test_a_balance_has_a_lowest_value(keeper: Bookkeeper, ledger: ClosableStore) -> None:
    dear = TokenUsage(0, 8 * 10**12)  # 8.64 million dollars

    kinds = [(await keeper.record(an_event(reported=dear)))[0].kind for _ in range(2)]

    assert kinds == [OutcomeKind.POSTED, OutcomeKind.REJECTED]
    assert (await ledger.inspect(lambda snapshot: checking.check(snapshot, ""))).violations == ()


async def test_an_unknown_price_book_defers_and_writes_nothing(
    keeper: Bookkeeper, ledger: ClosableStore, place: Place
) -> None:
    (outcome,) = await keeper.record(an_event(price_book_version="0" * 64))

    assert outcome.kind is OutcomeKind.DEFERRED
    await nothing_but(keeper, ledger, place, calls=0)


@pytest.mark.parametrize(
    "credit",
    [
        pytest.param(lambda: a_credit(amount_nano_usd=9_000_000_000_000_001), id="a balance above any"),
        pytest.param(
            lambda: a_credit(kind=CreditKind.PROMOTION, expires_at_us=NOW_US), id="a promotion that has expired"
        ),
    ],
)
async def test_a_credit_that_cannot_be_granted_leaves_nothing(
    keeper: Bookkeeper, ledger: ClosableStore, place: Place, credit: Callable[[], Credit]
) -> None:
    with pytest.raises(InvalidRequestError):
        await keeper.grant(credit())

    await nothing_but(keeper, ledger, place, calls=0)


async def test_a_key_that_granted_something_else_is_refused(keeper: Bookkeeper, place: Place) -> None:
    credit = a_credit()
    await keeper.grant(credit)

    for other in ({"amount_nano_usd": 1}, {"kind": CreditKind.REFUND}):
        with pytest.raises(AlreadyExistsError):
            await keeper.grant(a_credit(idempotency_key=credit.idempotency_key, **other))

    assert await keeper.balance() == (1_000_000_000, 1_000_000_000, 0)
    assert await place.rows("SELECT count(*) FROM transfers") == [(1,)]


IMPOSSIBLE: dict[str, dict[str, object]] = {
    "nothing": {"amount_nano_usd": 0},
    "a negative amount": {"amount_nano_usd": -1},
    "an amount that overflows": {"amount_nano_usd": 2**63},
    "from an account to itself": {"credit": f"customer:{ACCOUNT}"},
}


async def test_the_store_itself_refuses_an_impossible_transfer(
    keeper: Bookkeeper, ledger: ClosableStore, place: Place
) -> None:
    sides = f"customer:{ACCOUNT}", "revenue:dragon"
    good = asyncio.ensure_future(keeper.record(an_event()))

    for changes in IMPOSSIBLE.values():
        transfer = Transfer(new_id(), *sides, 5, None, "correct.charge", "", None, NOW_US)._replace(**changes)  # type: ignore[arg-type]
        with pytest.raises(Exception) as caught:
            await ledger.commit(functools.partial(_append, transfer))
        assert not isinstance(caught.value, GatewayError), changes

    await good
    await nothing_but(keeper, ledger, place, calls=1)


def _append(transfer: Transfer, transaction: LedgerTransaction) -> None:
    transaction.add_transfer(transfer, ACCOUNT)


async def test_a_clock_that_jumps_changes_no_money(ledger: ClosableStore) -> None:
    now = [NOW_US]
    keeper = Bookkeeper(ledger, lambda: now[0])
    await keeper.register()
    event = an_event()
    for jump in (0, -40 * DAY_US, 400 * DAY_US, 0):
        now[0] = NOW_US + jump
        await keeper.record(event, an_event())

    customer = await ledger.customer(ACCOUNT)
    report = await ledger.inspect(lambda snapshot: checking.check(snapshot, ""))

    assert (customer.balance_nano_usd, customer.seq, report.violations) == (-5 * COST, 4, ())
