"""Administration and decisions of one service on a real PostgreSQL, as callers see them.

Owns the way from a call to the server and back; the store's own promises are in `tests/contract/auth_and_limits`.
"""

from pathlib import Path

import pytest
from mws.admission.v1 import account_service_pb2 as pb
from mws.admission.v1 import audit_service_pb2 as audit_pb
from mws.admission.v1 import key_service_pb2 as key_pb
from mws.admission.v1 import plan_service_pb2 as plan_pb

from services.runtime.errors import (
    ForeignAccountError,
    InvalidCredentialError,
    InvalidRequestError,
    NotFoundError,
    StoreUnavailableError,
)
from tests.rpc.auth_and_limits.asking import USD, admin, audit, pages, update
from tests.rpc.auth_and_limits.serving import TIMEOUT_S, admit_request, by_key, serving


async def test_an_accounts_whole_life(tmp_path: Path, postgres_url: str) -> None:
    async with serving(tmp_path, postgres_url=postgres_url) as running:
        stubs = await admin(running)
        account_id, other = await running.new_account("a'; --"), await running.new_account()
        key_id, text = await running.new_key(account_id, name="ci")
        await running.fund(account_id, 30 * USD, paid=25 * USD)
        assert (await running.admit(admit_request(by_key(text), amount_nano_usd=5))).HasField("admitted")
        assert (await running.limits(by_key(text))).limits.requests.limit == 3000
        await update(running, account_id, "plan", plan="enterprise")
        assert (await running.limits(by_key(text))).limits.requests.limit == 150_000

        team = await running.team(other)
        with pytest.raises(ForeignAccountError):
            await team.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id), timeout=TIMEOUT_S)
        found = await pages(stubs.accounts.ListAccounts, pb.ListAccountsRequest(page_size=1), "accounts")
        assert [[account.account_id for account in page] for page in found] == [[account_id], [other]]

        closed = (await stubs.accounts.CloseAccount(pb.CloseAccountRequest(account_id=account_id), timeout=20)).account
        again = (await stubs.accounts.CloseAccount(pb.CloseAccountRequest(account_id=account_id), timeout=20)).account
        assert closed == again
        assert closed.HasField("closed_at")
        for refused in (
            running.limits(by_key(text)),
            running.admit(admit_request(by_key(text))),
        ):
            with pytest.raises(InvalidCredentialError):
                await refused
        with pytest.raises(NotFoundError):
            await running.new_key(account_id)
        request = audit_pb.ListAuditEventsRequest(account_id=account_id, page_size=3)
        events = [event for page in await pages(stubs.audit.ListAuditEvents, request, "events") for event in page]
        assert [event.action for event in events] == [
            "account.closed",
            "account.updated",
            "key.created",
            "account.created",
        ]


async def test_a_text_that_the_server_cannot_keep_is_the_callers_fault(tmp_path: Path, postgres_url: str) -> None:
    async with serving(tmp_path, postgres_url=postgres_url) as running:
        with pytest.raises(InvalidRequestError):
            await running.new_account("nul \0")
        with pytest.raises(InvalidRequestError):
            await (await admin(running)).accounts.GetAccount(pb.GetAccountRequest(account_id="\0"), timeout=TIMEOUT_S)
        await running.new_account("fine")
        assert len(await audit(running)) == 1


async def test_a_service_opens_while_its_server_is_away(tmp_path: Path) -> None:
    async with serving(tmp_path, postgres_url="postgresql://postgres@127.0.0.1:1/none") as running:
        with pytest.raises(StoreUnavailableError):
            await running.new_account()
        with pytest.raises(StoreUnavailableError):
            await running.limits(by_key("mws_live_x"))


async def test_plans_are_listed_page_by_page(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        found = await pages((await running.team("a")).plans.ListPlans, plan_pb.ListPlansRequest(page_size=2), "plans")

    plans = [plan for page in found for plan in page]
    assert [len(page) for page in found] == [2, 1]
    assert [(plan.name, plan.is_default, plan.is_subscription) for plan in plans] == [
        ("enterprise", False, True),
        ("pay_as_you_go", True, False),
        ("pro", False, True),
    ]
    assert [tier.from_paid_nano_usd // USD for tier in plans[1].tiers] == [0, 25, 100, 500, 2500]
