"""`AccountService` and `AuditService`: decode, call one use case, encode.

Owns nothing but that; refuses to decide and to catch.
"""

import asyncio
from typing import Any

from mws.admission.v1 import account_service_pb2 as pb
from mws.admission.v1 import audit_service_pb2 as audit_pb
from mws.admission.v1.account_service_pb2_grpc import AccountServiceServicer
from mws.admission.v1.audit_service_pb2_grpc import AuditServiceServicer

from services.auth_and_limits import account_translate as translate
from services.auth_and_limits.accounts import Accounts, NewAccount
from services.auth_and_limits.pages import PageTokens, cut
from services.auth_and_limits.records import Account
from services.auth_and_limits.translate import Rules
from services.runtime.callers import account_for
from services.runtime.calls import call_of

_LARGEST_CLAIM = 512


class AccountServicer(AccountServiceServicer):
    """The RPCs of accounts and teams."""

    def __init__(self, accounts: Accounts, tokens: PageTokens) -> None:
        self._accounts = accounts
        self._tokens = tokens

    async def CreateAccount(self, request: pb.CreateAccountRequest, context: Any) -> pb.CreateAccountResponse:
        rules = Rules()
        rules.id("request_id", request.request_id)
        rules.length("name", request.name, translate.LARGEST_NAME, 1)
        overrides = translate.overrides_from_pb(request.overrides, rules, "overrides")
        rules.check()
        new = NewAccount(request.request_id, request.name, request.plan, overrides)
        account = await self._accounts.create(call_of(context).caller, new)
        call_of(context).note(account_id=account.account_id)
        return pb.CreateAccountResponse(account=await self._to_pb(account))

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.GetAccountResponse:
        account = await self._accounts.get(account_for(call_of(context), request.account_id))
        return pb.GetAccountResponse(account=await self._to_pb(account))

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Any) -> pb.ListAccountsResponse:
        filters = ("accounts", request.name)
        page = translate.page_from_pb(self._tokens, request.page_size, request.page_token, *filters)
        accounts, has_more = cut(await self._accounts.page(request.name, page), page.size)
        return pb.ListAccountsResponse(
            accounts=await asyncio.gather(*(self._to_pb(account) for account in accounts)),
            next_page_token=self._tokens.seal(accounts[-1].account_id, *filters) if has_more else "",
        )

    async def UpdateAccount(self, request: pb.UpdateAccountRequest, context: Any) -> pb.UpdateAccountResponse:
        call = call_of(context)
        change = translate.account_change(request.account, request.update_mask.paths)
        account = await self._accounts.update(call.caller, request.account.account_id, change)
        call.note(account_id=account.account_id)
        return pb.UpdateAccountResponse(account=await self._to_pb(account))

    async def CloseAccount(self, request: pb.CloseAccountRequest, context: Any) -> pb.CloseAccountResponse:
        call = call_of(context)
        account = await self._accounts.close(call.caller, request.account_id)
        call.note(account_id=account.account_id)
        return pb.CloseAccountResponse(account=await self._to_pb(account))

    async def CreateTeam(self, request: pb.CreateTeamRequest, context: Any) -> pb.CreateTeamResponse:
        call = call_of(context)
        rules = Rules()
        rules.length("account_id", request.account_id, 36, 1)
        rules.length("issuer", request.issuer, _LARGEST_CLAIM, 1)
        rules.length("subject", request.subject, _LARGEST_CLAIM, 1)
        rules.check()
        team = await self._accounts.create_team(call.caller, request.account_id, request.issuer, request.subject)
        call.note(account_id=team.account_id)
        return pb.CreateTeamResponse(team=translate.team_to_pb(team))

    async def ListTeams(self, request: pb.ListTeamsRequest, context: Any) -> pb.ListTeamsResponse:
        account_id = account_for(call_of(context), request.account_id)
        filters = ("teams", account_id)
        page = translate.page_from_pb(self._tokens, request.page_size, request.page_token, *filters)
        teams, has_more = cut(await self._accounts.teams_page(account_id, page), page.size)
        return pb.ListTeamsResponse(
            teams=[translate.team_to_pb(team) for team in teams],
            next_page_token=self._tokens.seal(teams[-1].team_id, *filters) if has_more else "",
        )

    async def DeleteTeam(self, request: pb.DeleteTeamRequest, context: Any) -> pb.DeleteTeamResponse:
        await self._accounts.delete_team(call_of(context).caller, request.team_id)
        return pb.DeleteTeamResponse()

    async def _to_pb(self, account: Account) -> pb.Account:
        return translate.account_to_pb(account, await self._accounts.ceilings(account))


class AuditServicer(AuditServiceServicer):
    """The RPC of the audit log."""

    def __init__(self, accounts: Accounts, tokens: PageTokens) -> None:
        self._accounts = accounts
        self._tokens = tokens

    async def ListAuditEvents(
        self, request: audit_pb.ListAuditEventsRequest, context: Any
    ) -> audit_pb.ListAuditEventsResponse:
        account_id = account_for(call_of(context), request.account_id)
        filters = ("audit", account_id)
        page = translate.page_from_pb(self._tokens, request.page_size, request.page_token, *filters)
        events, has_more = cut(await self._accounts.audit_page(account_id, page), page.size)
        return audit_pb.ListAuditEventsResponse(
            events=[translate.event_to_pb(event) for event in events],
            next_page_token=self._tokens.seal(events[-1].event_id, *filters) if has_more else "",
        )
