"""Accounts and teams: created, changed, listed, each change with its line in the audit log.

Owns what an account may be (plan, ceilings) and what a change is; refuses to know protobuf and SQL.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from services.auth_and_limits.directory import Directory
from services.auth_and_limits.pages import Page
from services.auth_and_limits.ports import AccountStore, HoldStore
from services.auth_and_limits.records import Account, AuditEvent, Team
from services.auth_and_limits.tiers import Ceilings, Overrides, PlanBook
from services.auth_and_limits.trail import Trail, changed_fields
from services.runtime.calls import Caller
from services.runtime.errors import FieldViolation, InvalidRequestError, NotFoundError


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What an account shall be. `plan` empty: the default one."""

    request_id: str
    name: str
    plan: str
    overrides: Overrides


class Accounts:
    """The use cases around accounts and teams."""

    def __init__(
        self, store: AccountStore, directory: Directory, holds: HoldStore, *, plans: PlanBook, trail: Trail
    ) -> None:
        self._store = store
        self._directory = directory
        self._holds = holds
        self._plans = plans
        self._trail = trail

    async def create(self, caller: Caller, new: NewAccount) -> Account:
        """Creates an account, or returns the one that the same request made."""
        plan = new.plan or self._plans.default_plan
        self._check_plan(plan)
        account = Account(self._trail.new_id(), new.name, plan, new.overrides, False, self._trail.now_unix_ms())
        values = {"name": account.name, "plan": plan, **changed_fields("overrides", Overrides(), new.overrides)}
        event = self._trail.event(caller, "account.created", account.account_id, account.account_id, values)
        created = await self._store.create_account(account, new.request_id, _content_of(new), event)
        if created.account_id == account.account_id:
            self._directory.put_account(created)
        return created

    async def get(self, account_id: str) -> Account:
        """The account. Raises NotFoundError."""
        account = await self._store.account(account_id) if account_id else None
        if account is None:
            raise NotFoundError("no such account", metadata={"resource": "account"})
        return account

    async def page(self, name: str, page: Page) -> Sequence[Account]:
        """One more than a page of accounts, oldest first."""
        return await self._store.accounts(name, page.after_id, page.size + 1)

    async def update(self, caller: Caller, account_id: str, change: Callable[[Account], Account]) -> Account:
        """Applies a change; one that changes nothing leaves no trace."""
        return await self._edit(caller, "account.updated", account_id, change)

    async def close(self, caller: Caller, account_id: str) -> Account:
        """Ends an account for ever; a repeat leaves the first instant."""
        now_ms = self._trail.now_unix_ms()

        def change(account: Account) -> Account:
            return account if account.closed_at_ms is not None else replace(account, closed_at_ms=now_ms)

        return await self._edit(caller, "account.closed", account_id, change)

    async def _edit(
        self, caller: Caller, action: str, account_id: str, change: Callable[[Account], Account]
    ) -> Account:
        def edit(before: Account) -> tuple[Account, AuditEvent | None]:
            after = change(before)
            if after.plan != before.plan:
                self._check_plan(after.plan)
            changes = changed_fields("", before, after)
            event = self._trail.event(caller, action, account_id, account_id, changes) if changes else None
            return after, event

        account = await self._store.edit_account(account_id, edit)
        self._directory.put_account(account)
        return account

    async def ceilings(self, account: Account) -> Ceilings:
        """The ceilings in force now."""
        return await self._holds.ceilings(account)

    async def create_team(self, caller: Caller, account_id: str, issuer: str, subject: str) -> Team:
        """Lets a subject act for an account."""
        if (await self.get(account_id)).closed_at_ms is not None:
            raise NotFoundError("no such account", metadata={"resource": "account"})
        team = Team(self._trail.new_id(), account_id, issuer, subject, self._trail.now_unix_ms())
        values = {"issuer": issuer, "subject": subject}
        event = self._trail.event(caller, "team.created", account_id, team.team_id, values)
        return await self._store.create_team(team, event)

    async def teams_page(self, account_id: str, page: Page) -> Sequence[Team]:
        """One more than a page of an account's teams, oldest first."""
        return await self._store.teams(account_id, page.after_id, page.size + 1)

    async def delete_team(self, caller: Caller, team_id: str) -> None:
        """Ends a team's right; a repeat changes nothing. Raises NotFoundError."""
        team = await self._store.delete_team(team_id, self._trail.event(caller, "team.deleted", "", team_id, {}))
        if team is not None:
            self._directory.drop_team(team)

    async def audit_page(self, account_id: str, page: Page) -> Sequence[AuditEvent]:
        """One more than a page of audit events, newest first; of all accounts if none is named."""
        return await self._store.audit_events(account_id, page.after_id, page.size + 1)

    def _check_plan(self, plan: str) -> None:
        if plan not in self._plans.plans:
            rule = f"must be one of {', '.join(sorted(self._plans.plans))}"
            raise InvalidRequestError("unknown plan", violations=[FieldViolation("plan", rule)])


def _content_of(new: NewAccount) -> bytes:
    """What a repeat of a request must agree with."""
    overrides = [getattr(new.overrides, field.name) for field in fields(Overrides)]
    return hashlib.sha256(json.dumps([new.name, new.plan, overrides]).encode()).digest()
