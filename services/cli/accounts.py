"""`mws account`, `mws key` and `mws team`: who may call.

Owns the commands' options and their output; every rule is the service's.
"""

from typing import Annotated

import typer
from mws.admission.v1 import account_service_pb2 as account_pb
from mws.admission.v1 import key_service_pb2 as key_pb
from mws.metering.v1 import ledger_service_pb2 as ledger_pb

from services.cli.admin import Admin, admin_command, call
from services.cli.money import nano_from_usd, usd_from_nano
from services.runtime.ids import new_id

account_app = typer.Typer(help="Accounts: who pays, under which ceilings.", no_args_is_help=True)
key_app = typer.Typer(help="API keys of accounts.", no_args_is_help=True)
team_app = typer.Typer(help="Internal teams that act for an account over gRPC.", no_args_is_help=True)

AccountOption = Annotated[str, typer.Option("--account", help="Account id, or a name that only one account has.")]


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
) -> None:
    """Create an account with its first API key, and with credits if asked for."""
    grants = [
        (kind, nano_from_usd(usd))
        for kind, usd in ((ledger_pb.CREDIT_KIND_PURCHASE, credit_usd), (ledger_pb.CREDIT_KIND_PROMOTION, promo_usd))
        if usd is not None
    ]
    request_id = new_id()
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
    made = call(admin.keys.CreateKey, key_pb.CreateKeyRequest(account_id=account.account_id, name="first key"))
    admin.report.record(
        "Account created; the key is shown this once",
        {
            "account_id": account.account_id,
            "api_key": made.api_key,
            "key_id": made.key.key_id,
            "balance_nano_usd": balance,
        },
        for_people={"account": account.account_id, "api_key": made.api_key, "balance_usd": usd_from_nano(balance)},
    )


@admin_command(account_app, "list")
def list_accounts(admin: Admin) -> None:
    """List accounts, oldest first."""
    rows, page_token = [], ""
    while True:
        request = account_pb.ListAccountsRequest(page_size=1000, page_token=page_token)
        page = call(admin.accounts.ListAccounts, request)
        rows += [_account_row(account) for account in page.accounts]
        page_token = page.next_page_token
        if not page_token:
            break
    admin.report.rows(
        "accounts", ["account_id", "name", "plan", "tier", "requests_per_minute", "tokens_per_minute"], rows
    )


@admin_command(account_app, "show")
def show_account(admin: Admin, account: AccountOption) -> None:
    """Show one account and the ceilings in force."""
    request = account_pb.GetAccountRequest(account_id=admin.account_id(account))
    admin.report.record("Account", _account_row(call(admin.accounts.GetAccount, request).account))


def _account_row(account: account_pb.Account) -> dict[str, str | int | bool]:
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
    }


@admin_command(key_app, "create")
def create_key(
    admin: Admin,
    account: AccountOption,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    rpm: Annotated[int | None, typer.Option(help="Requests per minute of this key.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute of this key.")] = None,
) -> None:
    """Make a key and show it, this once."""
    throttle = key_pb.KeyThrottle(requests_per_minute=rpm, tokens_per_minute=tpm)
    request = key_pb.CreateKeyRequest(account_id=admin.account_id(account), name=name, throttle=throttle)
    made = call(admin.keys.CreateKey, request)
    admin.report.record(
        "Key created; it is shown this once",
        {"key_id": made.key.key_id, "api_key": made.api_key, "account_id": made.key.account_id},
    )


@admin_command(key_app, "list")
def list_keys(admin: Admin, account: AccountOption) -> None:
    """List an account's keys, revoked ones included."""
    account_id, rows, page_token = admin.account_id(account), [], ""
    while True:
        request = key_pb.ListKeysRequest(account_id=account_id, page_size=1000, page_token=page_token)
        page = call(admin.keys.ListKeys, request)
        rows += [_key_row(key) for key in page.keys]
        page_token = page.next_page_token
        if not page_token:
            break
    admin.report.rows("keys", ["key_id", "name", "prefix", "state", "throttle_rpm", "throttle_tpm"], rows)


@admin_command(key_app, "revoke")
def revoke_key(admin: Admin, key_id: Annotated[str, typer.Option("--key", help="The key's id.")]) -> None:
    """End a key for ever, everywhere, at its next use."""
    key = call(admin.keys.RevokeKey, key_pb.RevokeKeyRequest(key_id=key_id)).key
    admin.report.record("Key revoked", _key_row(key))


@admin_command(key_app, "throttle")
def throttle_key(
    admin: Admin,
    key_id: Annotated[str, typer.Option("--key", help="The key's id.")],
    rpm: Annotated[int | None, typer.Option(help="Requests per minute; leave out for none of its own.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute; leave out for none of its own.")] = None,
) -> None:
    """Set a key's own ceilings; without --rpm and --tpm, remove them."""
    throttle = key_pb.KeyThrottle(requests_per_minute=rpm, tokens_per_minute=tpm)
    request = key_pb.UpdateKeyRequest(key=key_pb.Key(key_id=key_id, throttle=throttle))
    request.update_mask.paths.append("throttle")
    admin.report.record("Key throttled", _key_row(call(admin.keys.UpdateKey, request).key))


def _key_row(key: key_pb.Key) -> dict[str, str | int | None]:
    own = key.throttle
    return {
        "key_id": key.key_id,
        "account_id": key.account_id,
        "name": key.name,
        "prefix": key.prefix,
        "state": "revoked" if key.HasField("revoked_at") else "active",
        "throttle_rpm": own.requests_per_minute if own.HasField("requests_per_minute") else None,
        "throttle_tpm": own.tokens_per_minute if own.HasField("tokens_per_minute") else None,
        "created_at": key.created_at.ToJsonString(),
        "expires_at": key.expires_at.ToJsonString() if key.HasField("expires_at") else None,
        "last_used_at": key.last_used_at.ToJsonString() if key.HasField("last_used_at") else None,
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
    request = account_pb.ListTeamsRequest(account_id=admin.account_id(account), page_size=1000)
    rows = [
        {"team_id": team.team_id, "issuer": team.issuer, "subject": team.subject}
        for team in call(admin.accounts.ListTeams, request).teams
    ]
    admin.report.rows("teams", ["team_id", "issuer", "subject"], rows)
