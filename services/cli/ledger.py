"""`mws credit`, `mws balance`, `mws usage` and `mws ledger`: the money.

Owns the commands' options and their output; every rule is the service's.
"""

import enum
from typing import Annotated

import typer
from mws.common.v1 import token_usage_pb2
from mws.metering.v1 import ledger_service_pb2 as ledger_pb
from mws.metering.v1 import usage_service_pb2 as usage_pb

from services.cli.admin import AccountOption, Admin, admin_command, call
from services.cli.money import nano_from_usd, usd_from_nano

LARGEST_PAGE = 1000
app = typer.Typer()
credit_app = typer.Typer(help="Credits.", no_args_is_help=True)
ledger_app = typer.Typer(help="The ledger.", no_args_is_help=True)


class CreditKind(enum.StrEnum):
    """Where a credit comes from."""

    PURCHASE = "purchase"
    PROMOTION = "promotion"
    REFUND = "refund"


class Grouping(enum.StrEnum):
    """How usage is summed."""

    PROFILE = "profile"
    KEY = "key"
    APPLICATION = "application"
    DAY = "day"
    UPSTREAM = "upstream"


@admin_command(credit_app, "grant")
def grant(
    admin: Admin,
    account: AccountOption,
    usd: Annotated[str, typer.Option(help="Amount in dollars, for example 25.")],
    idempotency_key: Annotated[str, typer.Option(help="A repeat with the same key credits nothing more.")],
    kind: Annotated[CreditKind, typer.Option(help="A purchase counts towards the tier.")] = CreditKind.PURCHASE,
) -> None:
    """Credit an account."""
    request = ledger_pb.GrantCreditsRequest(
        account_id=admin.account_id(account),
        idempotency_key=idempotency_key,
        amount_nano_usd=nano_from_usd(usd),
        kind=ledger_pb.CreditKind.Value(f"CREDIT_KIND_{kind.name}"),
    )
    granted = call(admin.ledger.GrantCredits, request)
    admin.report.record(
        "Credits granted",
        {
            "account_id": granted.entry.account_id,
            "entry_id": granted.entry.entry_id,
            "amount_nano_usd": granted.entry.amount_nano_usd,
            "balance_nano_usd": granted.balance_nano_usd,
            "tier_pending": granted.tier_pending,
        },
        for_people={
            "amount_usd": usd_from_nano(granted.entry.amount_nano_usd),
            "balance_usd": usd_from_nano(granted.balance_nano_usd),
        },
    )


@admin_command(app, "balance")
def balance(admin: Admin, account: AccountOption) -> None:
    """Show an account's balance."""
    request = ledger_pb.GetBalanceRequest(account_id=admin.account_id(account))
    found = call(admin.ledger.GetBalance, request)
    admin.report.record(
        "Balance",
        {
            "account_id": found.account_id,
            "balance_nano_usd": found.balance_nano_usd,
            "balance_usd": usd_from_nano(found.balance_nano_usd),
            "promotional_nano_usd": found.promotional_nano_usd,
            "lifetime_paid_nano_usd": found.lifetime_paid_nano_usd,
        },
        for_people={
            "account": found.account_id,
            "balance_usd": usd_from_nano(found.balance_nano_usd),
            "of_which_promotional_usd": usd_from_nano(found.promotional_nano_usd),
            "lifetime_purchases_usd": usd_from_nano(found.lifetime_paid_nano_usd),
        },
    )


@admin_command(app, "usage")
def usage(
    admin: Admin,
    account: AccountOption,
    by: Annotated[Grouping, typer.Option(help="How to group.")] = Grouping.PROFILE,
) -> None:
    """Sum the last 30 days of an account's usage."""
    request = usage_pb.SummarizeUsageRequest(
        account_id=admin.account_id(account), group_by=usage_pb.UsageGrouping.Value(f"USAGE_GROUPING_{by.name}")
    )
    found = call(admin.usage.SummarizeUsage, request)
    admin.report.rows(
        "groups",
        ["group", "calls", "input_tokens", "output_tokens", "charged_usd"],
        [_summary_row(group) for group in found.groups],
        total=_summary_row(found.total),
    )


def _summary_row(summary: usage_pb.UsageSummary) -> dict[str, str | int]:
    charged: token_usage_pb2.TokenUsage = summary.charged
    return {
        "group": summary.group,
        "calls": summary.calls,
        "input_tokens": charged.input_tokens,
        "output_tokens": charged.output_tokens,
        "cache_read_tokens": charged.cache_read_tokens,
        "charged_nano_usd": summary.charged_nano_usd,
        "charged_usd": usd_from_nano(summary.charged_nano_usd),
    }


@admin_command(ledger_app, "check")
def check(
    admin: Admin,
    account: Annotated[str, typer.Option("--account", help="Only this account; all when left out.")] = "",
) -> None:
    """Recompute what can be recomputed; exits 1 if anything differs."""
    request = ledger_pb.CheckLedgerRequest(account_id=admin.account_id(account) if account else "")
    found = call(admin.ledger.CheckLedger, request)
    violations = [{"rule": v.rule, "resource_id": v.resource_id, "detail": v.detail} for v in found.violations]
    counts = {
        "checked_transfers": found.checked_transfers,
        "checked_accounts": found.checked_accounts,
        "checked_usage_events": found.checked_usage_events,
    }
    if violations:
        admin.report.rows("violations", ["rule", "resource_id", "detail"], violations, ok=False, **counts)
        raise typer.Exit(1)
    admin.report.record("The ledger holds", {"ok": True, **counts, "violations": []}, for_people=counts)


@admin_command(ledger_app, "entries")
def entries(
    admin: Admin,
    account: AccountOption,
    most: Annotated[int, typer.Option(help="How many, newest first.", min=1)] = 50,
) -> None:
    """List an account's newest ledger entries."""
    account_id, found, page_token = admin.account_id(account), list[ledger_pb.Entry](), ""
    while len(found) < most:
        size = min(most - len(found), LARGEST_PAGE)
        request = ledger_pb.ListEntriesRequest(account_id=account_id, page_size=size, page_token=page_token)
        page = call(admin.ledger.ListEntries, request)
        found += page.entries
        page_token = page.next_page_token
        if not page_token:
            break
    rows = [
        {
            "posted_at": entry.posted_at.ToJsonString(),
            "amount_nano_usd": entry.amount_nano_usd,
            "amount_usd": usd_from_nano(entry.amount_nano_usd),
            "rule": entry.rule,
            "counterpart": entry.counterpart,
            "call_id": entry.call_id,
            "flags": list(entry.flags),
            "entry_id": entry.entry_id,
        }
        for entry in found
    ]
    admin.report.rows("entries", ["posted_at", "amount_usd", "rule", "counterpart", "call_id"], rows)
