"""`mws ledger`: entries, and whether everything in it can be recomputed.

Owns the commands' options and their output; every rule is the service's.
"""

from typing import Annotated, Any

import typer
from mws.metering.v1 import ledger_service_pb2 as ledger_pb

from services.cli.admin import AccountOption, Admin, admin_command, call, every
from services.cli.money import usd_from_nano

ledger_app = typer.Typer(help="The ledger.", no_args_is_help=True)


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
    request = ledger_pb.ListEntriesRequest(account_id=admin.account_id(account))
    rows = [entry_row(entry) for entry in every(admin.ledger.ListEntries, request, "entries", most)]
    columns = ["posted_at", "amount_usd", "rule", "counterpart", "call_id", "reference"]
    admin.report.rows("entries", columns, rows)


def entry_row(entry: ledger_pb.Entry) -> dict[str, Any]:
    """An entry, with every field."""
    return {
        "posted_at": entry.posted_at.ToJsonString(),
        "amount_nano_usd": entry.amount_nano_usd,
        "amount_usd": usd_from_nano(entry.amount_nano_usd),
        "rule": entry.rule,
        "counterpart": entry.counterpart,
        "call_id": entry.call_id,
        "flags": list(entry.flags),
        "entry_id": entry.entry_id,
        "reference": entry.reference,
    }
