"""`AccountService` and `AuditService` as their callers see them.

Owns pages, masks, idempotency, who may touch what, and that a change acts at the next decision.
"""

import time
from typing import Any

import pytest
from mws.admission.v1 import account_service_pb2 as pb
from mws.admission.v1 import audit_service_pb2 as audit_pb
from mws.admission.v1 import key_service_pb2 as key_pb

from services.runtime.errors import (
    AlreadyExistsError,
    ForeignAccountError,
    InvalidCredentialError,
    InvalidRequestError,
    NotFoundError,
)
from services.runtime.ids import new_id
from tests.rpc.auth_and_limits.asking import USD, admin, audit, pages, update, update_key
from tests.rpc.auth_and_limits.serving import TIMEOUT_S, Running, by_key


class TestAccounts:
    async def test_a_new_account_has_the_default_plan_and_its_first_tier(self, running: Running) -> None:
        request = pb.CreateAccountRequest(request_id=new_id(), name="acme")

        account = (await (await admin(running)).accounts.CreateAccount(request, timeout=TIMEOUT_S)).account

        assert (account.name, account.plan, account.suspended) == ("acme", "pay_as_you_go", False)
        assert (account.ceilings.tier, account.ceilings.requests_per_minute) == ("start", 1_000)
        assert abs(account.created_at.seconds - time.time()) < 60

    async def test_creation_is_idempotent_by_its_request_id(self, running: Running) -> None:
        stub = (await admin(running)).accounts
        request = pb.CreateAccountRequest(request_id=new_id(), name="acme")

        first = await stub.CreateAccount(request, timeout=TIMEOUT_S)
        assert await stub.CreateAccount(request, timeout=TIMEOUT_S) == first
        request.name = "other"
        with pytest.raises(AlreadyExistsError):
            await stub.CreateAccount(request, timeout=TIMEOUT_S)

        assert [event.action for event in await audit(running)] == ["account.created"]

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            pytest.param({"request_id": "x"}, "request_id", id="no request id"),
            pytest.param({"name": ""}, "name", id="no name"),
            pytest.param({"name": "x" * 129}, "name", id="a long name"),
            pytest.param({"plan": "gold"}, "plan", id="an unknown plan"),
            pytest.param(
                {"overrides": pb.CeilingOverrides(requests_per_minute=0)}, "overrides.requests_per_minute", id="zero"
            ),
            pytest.param(
                {"overrides": pb.CeilingOverrides(tokens_per_minute=150_000_001)},
                "overrides.tokens_per_minute",
                id="beyond what a bucket can count",
            ),
            pytest.param(
                {"overrides": pb.CeilingOverrides(concurrent_calls=1_000_001)}, "overrides.concurrent_calls", id="slots"
            ),
        ],
    )
    async def test_a_broken_rule_names_its_field(self, running: Running, fields: dict[str, Any], field: str) -> None:
        request = pb.CreateAccountRequest(**{"request_id": new_id(), "name": "acme", **fields})

        with pytest.raises(InvalidRequestError) as refused:
            await (await admin(running)).accounts.CreateAccount(request, timeout=TIMEOUT_S)

        assert [violation.field for violation in refused.value.violations] == [field]

    async def test_ceilings_set_by_hand_show_and_are_told_apart_from_the_tiers(self, running: Running) -> None:
        account_id = await running.new_account(overrides=pb.CeilingOverrides(tokens_per_minute=7))

        account = (
            await (await admin(running)).accounts.GetAccount(
                pb.GetAccountRequest(account_id=account_id), timeout=TIMEOUT_S
            )
        ).account

        assert account.overrides == pb.CeilingOverrides(tokens_per_minute=7)
        assert (account.ceilings.tokens_per_minute, account.ceilings.requests_per_minute) == (7, 1_000)

    async def test_purchases_move_the_tier_without_anybody(self, running: Running) -> None:
        account_id = await running.new_account()
        await running.fund(account_id, 0, paid=100 * USD)

        request = pb.GetAccountRequest(account_id=account_id)
        account = (await (await admin(running)).accounts.GetAccount(request, timeout=TIMEOUT_S)).account

        assert account.ceilings.tier == "grow"

    async def test_a_change_acts_at_the_next_decision(self, running: Running) -> None:
        account_id = await running.new_account()
        _, key = await running.new_key(account_id)
        assert (await running.limits(by_key(key))).limits.requests.limit == 1_000

        await update(running, account_id, "plan", plan="pro")
        assert (await running.limits(by_key(key))).limits.requests.limit == 6_000
        overrides = pb.CeilingOverrides(requests_per_minute=5, tokens_per_minute=6)
        await update(running, account_id, "overrides.requests_per_minute", overrides=overrides)
        limits = (await running.limits(by_key(key))).limits
        assert (limits.requests.limit, limits.tokens.limit) == (5, 12_000_000)
        await update(running, account_id, "overrides")
        assert (await running.limits(by_key(key))).limits.requests.limit == 6_000
        await update(running, account_id, "suspended", suspended=True)
        with pytest.raises(InvalidCredentialError):
            await running.limits(by_key(key))
        await update(running, account_id, "suspended", suspended=False)
        await running.limits(by_key(key))

    @pytest.mark.parametrize(
        ("paths", "fields"),
        [
            pytest.param([], {"name": "x"}, id="an empty mask"),
            pytest.param(["created_at"], {}, id="what cannot be changed"),
            pytest.param(["name"], {"name": ""}, id="an empty name"),
            pytest.param(["plan"], {"plan": "gold"}, id="an unknown plan"),
            pytest.param(["overrides"], {"overrides": pb.CeilingOverrides(concurrent_calls=0)}, id="zero slots"),
        ],
    )
    async def test_a_bad_change_is_refused_and_changes_nothing(
        self, running: Running, paths: list[str], fields: dict[str, Any]
    ) -> None:
        account_id = await running.new_account("acme")

        with pytest.raises(InvalidRequestError):
            await update(running, account_id, *paths, **fields)

        assert [event.action for event in await audit(running, account_id)] == ["account.created"]

    async def test_accounts_are_listed_page_by_page_oldest_first(self, running: Running) -> None:
        ids = [await running.new_account("acme" if number % 2 else "other") for number in range(5)]
        stub = (await admin(running)).accounts

        found = await pages(stub.ListAccounts, pb.ListAccountsRequest(page_size=2), "accounts")
        named = await pages(stub.ListAccounts, pb.ListAccountsRequest(page_size=2, name="other"), "accounts")

        assert [[account.account_id for account in page] for page in found] == [ids[:2], ids[2:4], ids[4:]]
        assert sorted(account.account_id for page in named for account in page) == sorted(ids[::2])

    async def test_a_page_token_is_bound_to_its_list(self, running: Running) -> None:
        for _ in range(2):
            await running.new_account()
        stub = (await admin(running)).accounts
        token = (await stub.ListAccounts(pb.ListAccountsRequest(page_size=1), timeout=TIMEOUT_S)).next_page_token

        for request in (
            pb.ListAccountsRequest(page_token=token, name="acme"),
            pb.ListAccountsRequest(page_token="x" + token),
            pb.ListAccountsRequest(page_size=1_001),
            pb.ListAccountsRequest(page_size=-1),
        ):
            with pytest.raises(InvalidRequestError):
                await stub.ListAccounts(request, timeout=TIMEOUT_S)
        other_list = (await admin(running)).audit.ListAuditEvents
        with pytest.raises(InvalidRequestError):
            await other_list(audit_pb.ListAuditEventsRequest(page_token=token), timeout=TIMEOUT_S)

    async def test_what_is_not_there_is_not_found(self, running: Running) -> None:
        stubs = await admin(running)
        for call in (
            stubs.accounts.GetAccount(pb.GetAccountRequest(account_id=new_id()), timeout=TIMEOUT_S),
            stubs.accounts.GetAccount(pb.GetAccountRequest(), timeout=TIMEOUT_S),
            update(running, new_id(), "name", name="x"),
            stubs.accounts.DeleteTeam(pb.DeleteTeamRequest(team_id=new_id()), timeout=TIMEOUT_S),
            stubs.accounts.CreateTeam(
                pb.CreateTeamRequest(account_id=new_id(), issuer="i", subject="s"), timeout=TIMEOUT_S
            ),
            stubs.keys.CreateKey(key_pb.CreateKeyRequest(account_id=new_id()), timeout=TIMEOUT_S),
            stubs.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=new_id()), timeout=TIMEOUT_S),
            update_key(running, new_id(), "name", name="x"),
        ):
            with pytest.raises(NotFoundError):
                await call


class TestTeams:
    async def test_a_subject_acts_for_one_account(self, running: Running) -> None:
        account_id, other_id = await running.new_account(), await running.new_account()
        stub = (await admin(running)).accounts
        request = pb.CreateTeamRequest(account_id=account_id, issuer="https://idp", subject="svc")

        first = (await stub.CreateTeam(request, timeout=TIMEOUT_S)).team
        repeated = (await stub.CreateTeam(request, timeout=TIMEOUT_S)).team
        request.account_id = other_id
        with pytest.raises(AlreadyExistsError):
            await stub.CreateTeam(request, timeout=TIMEOUT_S)

        assert first == repeated
        assert (first.account_id, first.issuer, first.subject) == (account_id, "https://idp", "svc")

    async def test_a_deleted_team_is_deleted_once(self, running: Running) -> None:
        account_id = await running.new_account()
        stub = (await admin(running)).accounts
        request = pb.CreateTeamRequest(account_id=account_id, issuer="https://idp", subject="svc")
        team = (await stub.CreateTeam(request, timeout=TIMEOUT_S)).team

        for _ in range(2):
            await stub.DeleteTeam(pb.DeleteTeamRequest(team_id=team.team_id), timeout=TIMEOUT_S)

        assert (await pages(stub.ListTeams, pb.ListTeamsRequest(account_id=account_id), "teams")) == [[]]
        actions = [event.action for event in await audit(running, account_id)]
        assert actions == ["team.deleted", "team.created", "account.created"]

    async def test_a_team_reads_its_own_account_only(self, running: Running) -> None:
        account_id, other_id = await running.new_account(), await running.new_account()
        stubs = await running.team(account_id)

        own = await stubs.accounts.GetAccount(pb.GetAccountRequest(), timeout=TIMEOUT_S)
        await stubs.accounts.ListTeams(pb.ListTeamsRequest(), timeout=TIMEOUT_S)
        events = await stubs.audit.ListAuditEvents(audit_pb.ListAuditEventsRequest(), timeout=TIMEOUT_S)

        assert own.account.account_id == account_id
        assert {event.account_id for event in events.events} == {account_id}
        for call in (
            stubs.accounts.GetAccount(pb.GetAccountRequest(account_id=other_id), timeout=TIMEOUT_S),
            stubs.accounts.ListTeams(pb.ListTeamsRequest(account_id=other_id), timeout=TIMEOUT_S),
            stubs.audit.ListAuditEvents(audit_pb.ListAuditEventsRequest(account_id=other_id), timeout=TIMEOUT_S),
            stubs.keys.ListKeys(key_pb.ListKeysRequest(account_id=other_id), timeout=TIMEOUT_S),
            stubs.keys.CreateKey(key_pb.CreateKeyRequest(account_id=other_id), timeout=TIMEOUT_S),
        ):
            with pytest.raises(ForeignAccountError):
                await call


class TestAudit:
    async def test_every_change_says_who_changed_what(self, running: Running) -> None:
        account_id = await running.new_account("acme", overrides=pb.CeilingOverrides(concurrent_calls=9))
        key_id, _ = await running.new_key(account_id, name="ci", throttle=key_pb.KeyThrottle(requests_per_minute=3))
        await update(running, account_id, "name", "suspended", name="ACME", suspended=True)
        await update(running, account_id, "name", name="ACME")
        await running.fund(account_id, 0, paid=25 * USD)
        team = (await running.team(account_id, "t1")).keys
        await team.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id), timeout=TIMEOUT_S)

        events = await audit(running, account_id)

        assert [(event.actor, event.action, event.resource_id) for event in events] == [
            ("team:t1", "key.revoked", key_id),
            ("admin", "account.updated", account_id),
            ("admin", "key.created", key_id),
            ("admin", "account.created", account_id),
        ]
        assert dict(events[1].changes) == {"name": "ACME", "suspended": "true"}
        created = {"name": "acme", "plan": "pay_as_you_go", "overrides.concurrent_calls": "9"}
        assert dict(events[3].changes) == created
        assert events[2].changes["throttle.requests_per_minute"] == "3"

    async def test_events_are_listed_page_by_page_newest_first(self, running: Running) -> None:
        account_id = await running.new_account()
        for number in range(4):
            await update(running, account_id, "name", name=str(number))
        stub = (await admin(running)).audit
        request = audit_pb.ListAuditEventsRequest(account_id=account_id, page_size=2)

        found = await pages(stub.ListAuditEvents, request, "events")

        names = [event.changes["name"] for page in found for event in page]
        assert names == ["3", "2", "1", "0", "acme"]
        assert [len(page) for page in found] == [2, 2, 1]
