"""`mws credit` and `mws balance`: money that comes in, goes back or was wrong.

Owns the commands' options and their output; every rule is the service's.
"""

import enum
from typing import Annotated, Any

import typer
from mws.metering.v1 import ledger_service_pb2 as pb

from services.cli.admin import AccountOption, Admin, admin_command, call, every
from services.cli.instants import instant_from_text, text_of
from services.cli.ledger import entry_row
from services.cli.money import nano_from_usd, usd_from_nano

app = typer.Typer()
credit_app = typer.Typer(help="Credits, refunds and corrections.", no_args_is_help=True)

KeyOption = Annotated[str, typer.Option("--idempotency-key", help="A repeat with the same key moves nothing more.")]


class CreditKind(enum.StrEnum):
    """Where a credit comes from."""

    PURCHASE = "purchase"
    PROMOTION = "promotion"
    REFUND = "refund"


@admin_command(credit_app, "grant")
def grant(
    admin: Admin,
    account: AccountOption,
    usd: Annotated[str, typer.Option(help="Amount in dollars, for example 25.")],
    idempotency_key: KeyOption,
    kind: Annotated[CreditKind, typer.Option(help="A purchase counts towards the tier.")] = CreditKind.PURCHASE,
    expires: Annotated[str, typer.Option(help="When what is left of a promotion ends: 2026-12-31.")] = "",
) -> None:
    """Credit an account. A purchase goes through the payment provider."""
    request = pb.GrantCreditsRequest(
        account_id=admin.account_id(account),
        idempotency_key=idempotency_key,
        amount_nano_usd=nano_from_usd(usd),
        kind=pb.CreditKind.Value(f"CREDIT_KIND_{kind.name}"),
        expires_at=instant_from_text(expires),
    )
    _show(admin, "Credits granted", call(admin.ledger.GrantCredits, request))


@admin_command(credit_app, "refund")
def refund(
    admin: Admin,
    account: AccountOption,
    usd: Annotated[str, typer.Option(help="Amount in dollars.")],
    idempotency_key: KeyOption,
) -> None:
    """Pay back purchased money that is not spent."""
    request = pb.RefundCreditsRequest(
        account_id=admin.account_id(account), idempotency_key=idempotency_key, amount_nano_usd=nano_from_usd(usd)
    )
    _show(admin, "Paid back", call(admin.ledger.RefundCredits, request))


@admin_command(credit_app, "correct")
def correct(
    admin: Admin,
    account: AccountOption,
    entry: Annotated[str, typer.Option(help="Id of the entry that was wrong (`mws ledger entries`).")],
    idempotency_key: KeyOption,
    usd: Annotated[str, typer.Option(help="How much of it, in dollars. Default: all that is left of it.")] = "",
) -> None:
    """Take an entry back with a new one that points at it."""
    request = pb.CorrectEntryRequest(
        account_id=admin.account_id(account),
        idempotency_key=idempotency_key,
        entry_id=entry,
        amount_nano_usd=nano_from_usd(usd) if usd else 0,
    )
    _show(admin, "Corrected", call(admin.ledger.CorrectEntry, request))


def _show(admin: Admin, title: str, booked: Any) -> None:
    entry = booked.entry
    admin.report.record(
        title,
        {
            "account_id": entry.account_id,
            "entry_id": entry.entry_id,
            "amount_nano_usd": entry.amount_nano_usd,
            "balance_nano_usd": booked.balance_nano_usd,
            "rule": entry.rule,
            "reference": entry.reference,
            "tier_pending": booked.tier_pending,
        },
        for_people={
            "amount_usd": usd_from_nano(entry.amount_nano_usd),
            "balance_usd": usd_from_nano(booked.balance_nano_usd),
            "entry": entry.entry_id,
        },
    )


@admin_command(credit_app, "list")
def list_credits(admin: Admin, account: AccountOption) -> None:
    """List an account's credits, newest first, with what is left of promotions."""
    request = pb.ListCreditsRequest(account_id=admin.account_id(account))
    rows = [_credit_row(credit) for credit in every(admin.ledger.ListCredits, request, "credits")]
    refundable = call(admin.ledger.ListCredits, pb.ListCreditsRequest(account_id=request.account_id, page_size=1))
    columns = ["posted_at", "kind", "amount_usd", "remaining_usd", "expires_at", "corrected_usd", "entry_id"]
    admin.report.rows("credits", columns, rows, refundable_nano_usd=refundable.refundable_nano_usd)
    admin.report.plain(f"can be paid back: {usd_from_nano(refundable.refundable_nano_usd)} USD")


def _credit_row(credit: pb.Credit) -> dict[str, Any]:
    is_promotion = credit.HasField("remaining_nano_usd")
    return entry_row(credit.entry) | {
        "kind": pb.CreditKind.Name(credit.kind).removeprefix("CREDIT_KIND_").lower(),
        "idempotency_key": credit.idempotency_key,
        "expires_at": text_of(credit.expires_at) if credit.HasField("expires_at") else None,
        "remaining_nano_usd": credit.remaining_nano_usd if is_promotion else None,
        "remaining_usd": usd_from_nano(credit.remaining_nano_usd) if is_promotion else "",
        "corrected_nano_usd": credit.corrected_nano_usd,
        "corrected_usd": usd_from_nano(credit.corrected_nano_usd) if credit.corrected_nano_usd else "",
    }


@admin_command(credit_app, "events")
def events(admin: Admin, account: AccountOption) -> None:
    """List when an account's balance fell below a threshold, newest first."""
    request = pb.ListBalanceEventsRequest(account_id=admin.account_id(account))
    rows = [
        {
            "occurred_at": text_of(event.occurred_at),
            "threshold_nano_usd": event.threshold_nano_usd,
            "threshold_usd": usd_from_nano(event.threshold_nano_usd),
            "balance_nano_usd": event.balance_nano_usd,
            "balance_usd": usd_from_nano(event.balance_nano_usd),
        }
        for event in every(admin.ledger.ListBalanceEvents, request, "events")
    ]
    admin.report.rows("events", ["occurred_at", "threshold_usd", "balance_usd"], rows)


@admin_command(app, "balance")
def balance(admin: Admin, account: AccountOption) -> None:
    """Show an account's balance."""
    found = call(admin.ledger.GetBalance, pb.GetBalanceRequest(account_id=admin.account_id(account)))
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
            "lifetime_paid_usd": usd_from_nano(found.lifetime_paid_nano_usd),
        },
    )
