"""Refunds, corrections and low-balance events, through the servicers.

Owns their bounds, what they leave in the ledger and that each happens once; refuses to test what a charge is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from mws.metering.v1 import ledger_service_pb2 as pb

from services.metering import translate
from services.metering.app import sweep
from services.metering.payments import ManualPayments, Payment
from services.runtime.calls import CallerClass
from services.runtime.errors import (
    AlreadyExistsError,
    CallerNotAllowedError,
    InvalidRequestError,
    NotFoundError,
    ServiceUnavailableError,
)
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, an_event
from tests.rpc.metering.serving import TIMEOUT_S, Running, running_metering

DOLLAR = 1_000_000_000
COST = 26_400


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_metering(tmp_path, low_balance=(2 * DOLLAR, DOLLAR, 0)) as metering:
        yield metering


async def grant(running: Running, amount: int, kind: Any = pb.CREDIT_KIND_PURCHASE, **changes: Any) -> pb.Entry:
    request = pb.GrantCreditsRequest(
        **({"account_id": ACCOUNT, "idempotency_key": new_id(), "amount_nano_usd": amount, "kind": kind} | changes)
    )
    entry: pb.Entry = (await running.admin.ledger.GrantCredits(request, timeout=TIMEOUT_S)).entry
    return entry


async def refund(running: Running, amount: int, key: str = "back") -> pb.RefundCreditsResponse:
    request = pb.RefundCreditsRequest(account_id=ACCOUNT, idempotency_key=key, amount_nano_usd=amount)
    response: pb.RefundCreditsResponse = await running.admin.ledger.RefundCredits(request, timeout=TIMEOUT_S)
    return response


async def correct(
    running: Running, entry_id: str, amount: int = 0, key: str = "fix", account_id: str = ACCOUNT
) -> pb.CorrectEntryResponse:
    request = pb.CorrectEntryRequest(
        account_id=account_id, idempotency_key=key, entry_id=entry_id, amount_nano_usd=amount
    )
    response: pb.CorrectEntryResponse = await running.admin.ledger.CorrectEntry(request, timeout=TIMEOUT_S)
    return response


async def spend(running: Running, **changes: Any) -> str:
    """A call of 26,400 nano-USD; returns its id."""
    event = an_event(**changes)
    await running.record(translate.event_to_pb(event))
    return event.call_id


async def charge_entry(running: Running, call_id: str) -> pb.Entry:
    request = pb.ListEntriesRequest(account_id=ACCOUNT, call_id=call_id)
    (entry,) = (await running.admin.ledger.ListEntries(request, timeout=TIMEOUT_S)).entries
    assert isinstance(entry, pb.Entry)
    return entry


async def money(running: Running) -> tuple[int, int, int]:
    """(balance, lifetime paid, promotional), with a ledger that holds."""
    found = await running.balance()
    assert await running.violations() == []
    return found.balance_nano_usd, found.lifetime_paid_nano_usd, found.promotional_nano_usd


async def test_a_refund_pays_back_what_is_purchased_and_unspent(running: Running) -> None:
    await grant(running, 10 * DOLLAR)
    await grant(running, 5 * DOLLAR, pb.CREDIT_KIND_PROMOTION)

    response = await refund(running, 4 * DOLLAR)

    entry = response.entry
    assert (entry.amount_nano_usd, entry.counterpart, entry.rule) == (-4 * DOLLAR, "payments", "refund.purchase")
    assert await money(running) == (11 * DOLLAR, 6 * DOLLAR, 5 * DOLLAR)


@pytest.mark.parametrize(
    ("purchased", "given", "gift", "refundable"),
    [
        pytest.param(1, 0, 0, DOLLAR - COST, id="what calls have spent stays spent"),
        pytest.param(1, 0, 1, DOLLAR, id="a gift is spent first, and never paid back"),
        pytest.param(0, 0, 1, 0, id="a gift alone is not refundable"),
        pytest.param(1, 1, 0, DOLLAR, id="at most what was purchased, also when something was given back"),
    ],
)
async def test_never_more_than_purchased_and_unspent(
    running: Running, purchased: int, given: int, gift: int, refundable: int
) -> None:
    for amount, kind in (
        (purchased, pb.CREDIT_KIND_PURCHASE),
        (given, pb.CREDIT_KIND_REFUND),
        (gift, pb.CREDIT_KIND_PROMOTION),
    ):
        if amount:
            await grant(running, amount * DOLLAR, kind)
    await spend(running)

    with pytest.raises(InvalidRequestError):
        await refund(running, refundable + 1)
    listed = await running.admin.ledger.ListCredits(pb.ListCreditsRequest(account_id=ACCOUNT), timeout=TIMEOUT_S)
    if refundable:
        await refund(running, refundable)
        with pytest.raises(InvalidRequestError):
            await refund(running, 1, key="one more")

    assert listed.refundable_nano_usd == refundable
    assert await running.violations() == []


async def test_a_hundred_refunds_at_once_pay_back_no_more_than_there_is(running: Running) -> None:
    await grant(running, 10 * DOLLAR)

    results = await asyncio.gather(
        *(refund(running, DOLLAR, key=f"r{index}") for index in range(100)), return_exceptions=True
    )

    assert sum(not isinstance(result, BaseException) for result in results) == 10
    assert await money(running) == (0, 0, 0)


async def test_a_repeated_refund_is_the_first_one(running: Running) -> None:
    await grant(running, 10 * DOLLAR)
    first = await refund(running, DOLLAR)

    assert await refund(running, DOLLAR) == first
    with pytest.raises(AlreadyExistsError):
        await refund(running, 2 * DOLLAR)
    with pytest.raises(AlreadyExistsError):
        await grant(running, DOLLAR, idempotency_key="back")

    assert await money(running) == (9 * DOLLAR, 9 * DOLLAR, 0)


class _Provider(ManualPayments):
    """A provider that counts what it collects, and refuses what it is told to."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.collected: list[Payment] = []
        self.refusal = refusal

    async def collect(self, payment: Payment) -> str:
        self.collected.append(payment)
        return f"receipt-{len(self.collected)}"

    async def pay_back(self, payment: Payment) -> str:
        if self.refusal is not None:
            raise self.refusal
        return await super().pay_back(payment)


async def test_a_purchase_is_collected_once_and_names_its_receipt(tmp_path: Path) -> None:
    provider = _Provider()
    async with running_metering(tmp_path, payments=provider) as running:
        first = await grant(running, DOLLAR, idempotency_key="k")
        again = await grant(running, DOLLAR, idempotency_key="k")
        await grant(running, DOLLAR, pb.CREDIT_KIND_PROMOTION)
        with pytest.raises(AlreadyExistsError):
            await grant(running, 2 * DOLLAR, idempotency_key="k")
        with pytest.raises(InvalidRequestError):
            await grant(running, 9_000_000_000_000_000)

    assert (first, first.reference) == (again, "receipt-1")
    assert provider.collected == [Payment(ACCOUNT, "k", DOLLAR)]


async def test_a_refund_that_the_provider_refuses_is_corrected(tmp_path: Path) -> None:
    async with running_metering(tmp_path, payments=_Provider(InvalidRequestError("the card is closed"))) as running:
        await grant(running, 3 * DOLLAR)
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match="the card is closed"):
                await refund(running, DOLLAR)

        assert await money(running) == (3 * DOLLAR, 3 * DOLLAR, 0)


async def test_a_provider_that_is_away_keeps_the_refund_for_the_repeat(tmp_path: Path) -> None:
    provider = _Provider(ServiceUnavailableError("not now"))
    async with running_metering(tmp_path, payments=provider) as running:
        await grant(running, 3 * DOLLAR)
        with pytest.raises(ServiceUnavailableError):
            await refund(running, DOLLAR)
        provider.refusal = None
        await refund(running, DOLLAR)

        assert await money(running) == (2 * DOLLAR, 2 * DOLLAR, 0)


async def test_a_corrected_charge_points_at_what_it_corrects(running: Running) -> None:
    await grant(running, DOLLAR)
    charged = await charge_entry(running, await spend(running))

    part = await correct(running, charged.entry_id, 400)
    rest = await correct(running, charged.entry_id, key="rest")

    assert [(part.entry.amount_nano_usd, part.entry.counterpart), rest.entry.amount_nano_usd] == [
        (400, "revenue:dragon"),
        COST - 400,
    ]
    assert (part.entry.rule, part.entry.reference) == ("correct.charge", charged.entry_id)
    assert await money(running) == (DOLLAR, DOLLAR, 0)
    with pytest.raises(InvalidRequestError):
        await correct(running, charged.entry_id, 1, key="one too many")


@pytest.mark.parametrize(
    ("kind", "rule", "left"),
    [
        pytest.param(pb.CREDIT_KIND_PURCHASE, "correct.purchase", (2 * DOLLAR, DOLLAR, DOLLAR), id="a purchase"),
        pytest.param(pb.CREDIT_KIND_PROMOTION, "correct.promotion", (2 * DOLLAR, DOLLAR, DOLLAR), id="a promotion"),
        pytest.param(pb.CREDIT_KIND_REFUND, "correct.credit", (2 * DOLLAR, DOLLAR, DOLLAR), id="what was given back"),
    ],
)
async def test_a_corrected_credit_is_as_if_it_had_not_been(
    running: Running, kind: Any, rule: str, left: tuple[int, int, int]
) -> None:
    await grant(running, DOLLAR)
    await grant(running, DOLLAR, pb.CREDIT_KIND_PROMOTION)
    wrong = await grant(running, 5 * DOLLAR, kind)

    response = await correct(running, wrong.entry_id)

    assert (response.entry.rule, response.entry.amount_nano_usd) == (rule, -5 * DOLLAR)
    assert await money(running) == left
    (found,) = [
        credit
        for credit in (
            await running.admin.ledger.ListCredits(pb.ListCreditsRequest(account_id=ACCOUNT), timeout=TIMEOUT_S)
        ).credits
        if credit.entry.entry_id == wrong.entry_id
    ]
    assert (found.corrected_nano_usd, found.kind) == (5 * DOLLAR, kind)


async def test_a_credit_that_is_spent_can_be_corrected_into_debt(running: Running) -> None:
    wrong = await grant(running, COST)
    await spend(running)
    await grant(running, DOLLAR, pb.CREDIT_KIND_PROMOTION)

    await correct(running, wrong.entry_id)

    assert await money(running) == (DOLLAR - COST, 0, DOLLAR - COST)


async def test_a_correction_is_made_once(running: Running) -> None:
    wrong = await grant(running, DOLLAR)
    first = await correct(running, wrong.entry_id, 5)

    assert await correct(running, wrong.entry_id, 5) == first
    for entry_id, amount in ((wrong.entry_id, 6), (new_id(), 5)):
        with pytest.raises(AlreadyExistsError):
            await correct(running, entry_id, amount)

    assert await money(running) == (DOLLAR - 5, DOLLAR - 5, 0)


async def test_what_cannot_be_corrected_is_refused(running: Running) -> None:
    other = await grant(running, DOLLAR, account_id="other")
    own = await grant(running, DOLLAR)
    correction = (await correct(running, own.entry_id, 1)).entry
    await refund(running, DOLLAR - 1)

    for entry_id, error in (
        (other.entry_id, NotFoundError),
        (new_id(), NotFoundError),
        ("not an id", InvalidRequestError),
        (correction.entry_id, InvalidRequestError),
        (own.entry_id, InvalidRequestError),  # it was paid back
    ):
        with pytest.raises(error):
            await correct(running, entry_id, key="another")

    assert await money(running) == (0, 0, 0)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda team: team.ledger.RefundCredits(pb.RefundCreditsRequest(), timeout=TIMEOUT_S), id="refund"),
        pytest.param(lambda team: team.ledger.CorrectEntry(pb.CorrectEntryRequest(), timeout=TIMEOUT_S), id="correct"),
    ],
)
async def test_only_administrators_move_money(running: Running, call: Callable[[Any], Any]) -> None:
    for caller_class in (CallerClass.TEAM, CallerClass.EDGE):
        with pytest.raises(CallerNotAllowedError):
            await call(running.by_class[caller_class])


async def thresholds_crossed(running: Running) -> list[int]:
    """Oldest first."""
    request = pb.ListBalanceEventsRequest(account_id=ACCOUNT)
    response = await running.admin.ledger.ListBalanceEvents(request, timeout=TIMEOUT_S)
    return [event.threshold_nano_usd for event in reversed(response.events)]


async def test_one_event_per_crossing_of_a_threshold(running: Running) -> None:
    await grant(running, 2 * DOLLAR)
    await spend(running)  # below 2
    await spend(running)
    await refund(running, DOLLAR - 2 * COST)  # exactly 1: not below
    await spend(running)  # below 1
    await grant(running, COST)
    await spend(running)  # below 1 again

    assert await thresholds_crossed(running) == [2 * DOLLAR, DOLLAR, DOLLAR]


async def test_one_charge_may_cross_several_thresholds(running: Running) -> None:
    wrong = await grant(running, 3 * DOLLAR)
    await spend(running)
    await correct(running, wrong.entry_id)

    assert await thresholds_crossed(running) == [2 * DOLLAR, DOLLAR, 0]


async def test_an_event_is_announced_and_then_waits_no_more(running: Running) -> None:
    await grant(running, 3 * DOLLAR)
    await refund(running, 2 * DOLLAR + 1)
    sweeper = asyncio.get_running_loop().create_task(sweep(running.store, 0.01, (2 * DOLLAR,)))
    async with asyncio.timeout(TIMEOUT_S):
        while await running.store.commit(lambda transaction: transaction.unannounced_balance_events(10)):
            await asyncio.sleep(0.01)
    sweeper.cancel()

    assert await thresholds_crossed(running) == [2 * DOLLAR, DOLLAR]


async def test_credits_are_listed_newest_first_with_what_is_left(running: Running) -> None:
    await grant(running, DOLLAR, idempotency_key="bought")
    expiry = Timestamp(seconds=4_000_000_000)
    await grant(running, DOLLAR, pb.CREDIT_KIND_PROMOTION, expires_at=expiry, idempotency_key="gift")
    await spend(running)

    listed, token = [], ""
    for _ in range(2):
        request = pb.ListCreditsRequest(account_id=ACCOUNT, page_size=1, page_token=token)
        page = await running.team.ledger.ListCredits(request, timeout=TIMEOUT_S)
        listed += page.credits
        token = page.next_page_token

    gift, bought = listed
    assert (gift.idempotency_key, gift.remaining_nano_usd, gift.expires_at) == ("gift", DOLLAR - COST, expiry)
    assert (bought.idempotency_key, bought.HasField("remaining_nano_usd"), token) == ("bought", False, "")
    assert bought.entry.reference == "manual:bought"
