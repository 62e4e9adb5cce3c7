"""GrantCredits and GetBalance as an administrator and a team see them.

Owns kinds, bounds, idempotency and what auth-and-limits hears; refuses to test how promotions burn (unit tests do).
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from mws.metering.v1 import ledger_service_pb2 as pb

from services.metering import translate
from services.metering.ledger import MAX_BALANCE_NANO_USD
from services.runtime.calls import CallerClass
from services.runtime.errors import (
    AlreadyExistsError,
    CallerNotAllowedError,
    ForeignAccountError,
    InvalidRequestError,
)
from tests.contract.metering.building import ACCOUNT, an_event
from tests.rpc.metering.serving import TIMEOUT_S, Running, ScriptedAuth, running_metering

DOLLAR = 1_000_000_000
GIFT = pb.CREDIT_KIND_PROMOTION
FAR = Timestamp(seconds=4_000_000_000)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_metering(tmp_path) as metering:
        yield metering


def a_grant(**changes: Any) -> pb.GrantCreditsRequest:
    defaults: dict[str, Any] = {
        "account_id": ACCOUNT,
        "idempotency_key": "k",
        "amount_nano_usd": DOLLAR,
        "kind": pb.CREDIT_KIND_PURCHASE,
    }
    return pb.GrantCreditsRequest(**(defaults | changes))


async def grant(running: Running, **changes: Any) -> pb.GrantCreditsResponse:
    response: pb.GrantCreditsResponse = await running.admin.ledger.GrantCredits(a_grant(**changes), timeout=TIMEOUT_S)
    return response


@pytest.mark.parametrize(
    ("kind", "counterpart", "rule", "balance"),
    [
        pytest.param(pb.CREDIT_KIND_PURCHASE, "payments", "grant.purchase", (DOLLAR, DOLLAR, 0), id="a purchase"),
        pytest.param(pb.CREDIT_KIND_PROMOTION, "promotions", "grant.promotion", (DOLLAR, 0, DOLLAR), id="a gift"),
        pytest.param(pb.CREDIT_KIND_REFUND, "refunds", "grant.refund", (DOLLAR, 0, 0), id="a refund"),
    ],
)
async def test_a_credit_is_posted_by_its_kind(
    running: Running, kind: pb.CreditKind.ValueType, counterpart: str, rule: str, balance: tuple[int, int, int]
) -> None:
    response = await grant(running, kind=kind)
    found = await running.balance()

    assert (DOLLAR, counterpart, rule, DOLLAR, False) == (
        response.entry.amount_nano_usd,
        response.entry.counterpart,
        response.entry.rule,
        response.balance_nano_usd,
        response.tier_pending,
    )
    assert balance == (found.balance_nano_usd, found.lifetime_paid_nano_usd, found.promotional_nano_usd)


async def test_a_repeat_returns_the_first_grant(running: Running) -> None:
    first = await grant(running)
    await grant(running, idempotency_key="another")

    again = await grant(running)

    assert first == again
    assert (await running.balance()).balance_nano_usd == 2 * DOLLAR


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"amount_nano_usd": 2 * DOLLAR}, id="another amount"),
        pytest.param({"kind": pb.CREDIT_KIND_REFUND}, id="another kind"),
        pytest.param({"kind": pb.CREDIT_KIND_PROMOTION, "expires_at": FAR}, id="another expiry"),
    ],
)
async def test_a_key_stands_for_one_credit(running: Running, changes: dict[str, Any]) -> None:
    await grant(running)

    with pytest.raises(AlreadyExistsError):
        await grant(running, **changes)

    assert (await running.balance()).balance_nano_usd == DOLLAR


async def test_the_same_key_of_another_account_is_another_credit(running: Running) -> None:
    await grant(running)
    other = await grant(running, account_id="other")

    assert (other.entry.account_id, other.balance_nano_usd) == ("other", DOLLAR)


async def test_a_race_for_one_key_grants_once(running: Running) -> None:
    responses = await asyncio.gather(*(grant(running) for _ in range(100)))

    assert len({response.entry.entry_id for response in responses}) == 1
    assert ((await running.balance()).balance_nano_usd, await running.violations()) == (DOLLAR, [])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"account_id": ""}, "account_id", id="no account"),
        pytest.param({"idempotency_key": ""}, "idempotency_key", id="no key"),
        pytest.param({"idempotency_key": "k" * 256}, "idempotency_key", id="a key that is too long"),
        pytest.param({"amount_nano_usd": 0}, "amount_nano_usd", id="nothing"),
        pytest.param({"amount_nano_usd": -1}, "amount_nano_usd", id="less than nothing"),
        pytest.param({"amount_nano_usd": MAX_BALANCE_NANO_USD + 1}, "amount_nano_usd", id="too much"),
        pytest.param({"kind": pb.CREDIT_KIND_UNSPECIFIED}, "kind", id="no kind"),
        pytest.param({"expires_at": FAR}, "expires_at", id="a purchase that expires"),
        pytest.param(
            {"kind": pb.CREDIT_KIND_PROMOTION, "expires_at": Timestamp(seconds=1)},
            "expires_at",
            id="a gift of yesterday",
        ),
        pytest.param(
            {"kind": pb.CREDIT_KIND_PROMOTION, "expires_at": Timestamp(seconds=-1)},
            "expires_at",
            id="a senseless expiry",
        ),
    ],
)
async def test_a_malformed_credit_is_refused(running: Running, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await grant(running, **changes)

    assert [field] == [violation.field for violation in caught.value.violations]


async def test_a_balance_has_a_ceiling(running: Running) -> None:
    await grant(running, amount_nano_usd=MAX_BALANCE_NANO_USD)

    with pytest.raises(InvalidRequestError):
        await grant(running, idempotency_key="one more", amount_nano_usd=1)

    assert (await running.balance()).balance_nano_usd == MAX_BALANCE_NANO_USD


async def test_a_grant_waits_for_auth_and_then_says_that_it_is_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.metering.credits.ACKNOWLEDGE_WAIT_S", 0.05)
    auth = ScriptedAuth(is_down=True)
    async with running_metering(tmp_path, auth) as running:
        pending = await grant(running)
        auth.is_down = False
        monkeypatch.setattr("services.metering.credits.ACKNOWLEDGE_WAIT_S", TIMEOUT_S)
        again = await grant(running)

    assert (pending.tier_pending, again.tier_pending) == (True, False)
    assert (auth.balances, auth.seqs) == ({ACCOUNT: DOLLAR}, {ACCOUNT: 1})


async def test_an_unknown_account_has_nothing(running: Running) -> None:
    assert pb.GetBalanceResponse(account_id="nobody") == await running.balance("nobody")


async def test_a_charge_burns_the_promotion_first(running: Running) -> None:
    await grant(running)
    await grant(running, idempotency_key="gift", kind=pb.CREDIT_KIND_PROMOTION, amount_nano_usd=20_000, expires_at=FAR)
    await running.record(translate.event_to_pb(an_event()))

    found = await running.balance()

    assert (found.balance_nano_usd, found.promotional_nano_usd) == (DOLLAR + 20_000 - 26_400, 0)
    assert await running.violations() == []


async def test_a_team_sees_its_own_account_only(running: Running) -> None:
    await grant(running)

    own = await running.team.ledger.GetBalance(pb.GetBalanceRequest(), timeout=TIMEOUT_S)
    with pytest.raises(ForeignAccountError):
        await running.team.ledger.GetBalance(pb.GetBalanceRequest(account_id="other"), timeout=TIMEOUT_S)

    assert (own.account_id, own.balance_nano_usd) == (ACCOUNT, DOLLAR)


async def test_only_administrators_grant(running: Running) -> None:
    for caller_class in set(CallerClass) - {CallerClass.ADMIN}:
        with pytest.raises(CallerNotAllowedError):
            await running.by_class[caller_class].ledger.GrantCredits(a_grant(), timeout=TIMEOUT_S)
