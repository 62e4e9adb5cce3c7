"""`mws account` and `mws team`: who pays, and who acts for whom.

Owns the commands' options and their output; every rule is the service's.
"""

from typing import Annotated

import typer
from mws.admission.v1 import account_service_pb2 as account_pb
from mws.admission.v1 import key_service_pb2 as key_pb
from mws.metering.v1 import ledger_service_pb2 as ledger_pb

from services.cli.admin import AccountOption, Admin, admin_command, call, every
from services.cli.money import nano_from_usd, usd_from_nano
from services.runtime.ids import new_id

account_app = typer.Typer(help="Accounts: who pays, under which ceilings.", no_args_is_help=True)
team_app = typer.Typer(help="Internal teams that act for an account over gRPC.", no_args_is_help=True)


@admin_command(account_app, "create")
def create_account(
    admin: Admin,
    name: Annotated[str, typer.Option(help="For people; need not be unique.")],
    plan: Annotated[str, typer.Option(help="Plan; empty for the default one.")] = "",
    credit_usd: Annotated[str | None, typer.Option(help="Credits to purchase through the manual provider.")] = None,
    promo_usd: Annotated[str | None, typer.Option(help="Promotional credits; spent first.")] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests per minute, instead of the tier's.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute, instead of the tier's.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Calls at the same time, instead of the tier's.")] = None,
    request_id: Annotated[str, typer.Option(help="UUIDv7 that makes the command repeatable; one is made up.")] = "",
) -> None:
    """Create an account with its first API key, and with credits if asked for."""
    grants = [
        (kind, nano_from_usd(usd))
        for kind, usd in ((ledger_pb.CREDIT_KIND_PURCHASE, credit_usd), (ledger_pb.CREDIT_KIND_PROMOTION, promo_usd))
        if usd is not None
    ]
    request_id = request_id or new_id()
    overrides = account_pb.CeilingOverrides(
        requests_per_minute=rpm, tokens_per_minute=tpm, concurrent_calls=concurrency
    )
    request = account_pb.CreateAccountRequest(request_id=request_id, name=name, plan=plan, overrides=overrides)
    account = call(admin.accounts.CreateAccount, request).account
    balance = 0
    for kind, amount in grants:
        granted = call(
            admin.ledger.GrantCredits,
            ledger_pb.GrantCreditsRequest(
                account_id=account.account_id,
                idempotency_key=f"account-create:{request_id}:{kind}",
                amount_nano_usd=amount,
                kind=kind,
            ),
        )
        balance = granted.balance_nano_usd
    first_key = key_pb.CreateKeyRequest(account_id=account.account_id, name="first key", request_id=request_id)
    made = call(admin.keys.CreateKey, first_key)
    admin.report.record(
        "Account created; the key is shown this once",
        {
            "account_id": account.account_id,
            "api_key": made.api_key or None,
            "key_id": made.key.key_id,
            "balance_nano_usd": balance,
        },
        for_people={"account": account.account_id, "api_key": made.api_key, "balance_usd": usd_from_nano(balance)},
    )


@admin_command(account_app, "list")
def list_accounts(admin: Admin) -> None:
    """List accounts, oldest first."""
    rows = [
        _account_row(row) for row in every(admin.accounts.ListAccounts, account_pb.ListAccountsRequest(), "accounts")
    ]
    admin.report.rows(
        "accounts", ["account_id", "name", "plan", "tier", "requests_per_minute", "tokens_per_minute"], rows
    )


@admin_command(account_app, "show")
def show_account(admin: Admin, account: AccountOption) -> None:
    """Show one account and the ceilings in force."""
    request = account_pb.GetAccountRequest(account_id=admin.account_id(account))
    admin.report.record("Account", _account_row(call(admin.accounts.GetAccount, request).account))


@admin_command(account_app, "update")
def update_account(
    admin: Admin,
    account: AccountOption,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    plan: Annotated[str | None, typer.Option(help="A new plan; acts at the next call.")] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests per minute; 0 for the tier's.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute; 0 for the tier's.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Calls at the same time; 0 for the tier's.")] = None,
    suspended: Annotated[bool | None, typer.Option("--suspend/--resume", help="Refuse or serve its calls.")] = None,
) -> None:
    """Change what is named and nothing else; acts at the account's next call."""
    changed = account_pb.Account(account_id=admin.account_id(account), name=name or "", plan=plan or "")
    changed.suspended = bool(suspended)
    paths = [field for field, value in (("name", name), ("plan", plan), ("suspended", suspended)) if value is not None]
    ceilings = {"requests_per_minute": rpm, "tokens_per_minute": tpm, "concurrent_calls": concurrency}
    for field, ceiling in ceilings.items():
        if ceiling is not None:
            paths.append(f"overrides.{field}")
            if ceiling:
                setattr(changed.overrides, field, ceiling)
    request = account_pb.UpdateAccountRequest(account=changed)
    request.update_mask.paths.extend(paths)
    admin.report.record("Account updated", _account_row(call(admin.accounts.UpdateAccount, request).account))


@admin_command(account_app, "close")
def close_account(admin: Admin, account: AccountOption) -> None:
    """End an account for ever: its keys and teams stop at the next call. Its ledger stays."""
    request = account_pb.CloseAccountRequest(account_id=admin.account_id(account))
    admin.report.record("Account closed", _account_row(call(admin.accounts.CloseAccount, request).account))


def _account_row(account: account_pb.Account) -> dict[str, str | int | bool | None]:
    return {
        "account_id": account.account_id,
        "name": account.name,
        "plan": account.plan,
        "tier": account.ceilings.tier,
        "requests_per_minute": account.ceilings.requests_per_minute,
        "tokens_per_minute": account.ceilings.tokens_per_minute,
        "concurrent_calls": account.ceilings.concurrent_calls,
        "suspended": account.suspended,
        "created_at": account.created_at.ToJsonString(),
        "closed_at": account.closed_at.ToJsonString() if account.HasField("closed_at") else None,
    }


@admin_command(team_app, "create")
def create_team(
    admin: Admin,
    account: AccountOption,
    issuer: Annotated[str, typer.Option(help="The token's `iss`.")],
    subject: Annotated[str, typer.Option(help="The token's `sub`.")],
) -> None:
    """Let an OIDC subject act for an account over gRPC."""
    request = account_pb.CreateTeamRequest(account_id=admin.account_id(account), issuer=issuer, subject=subject)
    team = call(admin.accounts.CreateTeam, request).team
    admin.report.record(
        "Team created",
        {"team_id": team.team_id, "account_id": team.account_id, "issuer": team.issuer, "subject": team.subject},
    )


@admin_command(team_app, "list")
def list_teams(admin: Admin, account: AccountOption) -> None:
    """List the teams of an account."""
    request = account_pb.ListTeamsRequest(account_id=admin.account_id(account))
    teams = every(admin.accounts.ListTeams, request, "teams")
    rows = [{"team_id": team.team_id, "issuer": team.issuer, "subject": team.subject} for team in teams]
    admin.report.rows("teams", ["team_id", "issuer", "subject"], rows)


@admin_command(team_app, "delete")
def delete_team(admin: Admin, team_id: Annotated[str, typer.Option("--team", help="The team's id.")]) -> None:
    """End a team's right at its next call."""
    call(admin.accounts.DeleteTeam, account_pb.DeleteTeamRequest(team_id=team_id))
    admin.report.record("Team deleted", {"team_id": team_id})
