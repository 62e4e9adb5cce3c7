"""`mws usage` and `mws call`: what was used, by whom, and what one call cost.

Owns the commands' options and their output; every sum is the service's.
"""

import enum
from typing import Annotated, Any

import typer
from mws.common.v1 import token_usage_pb2
from mws.metering.v1 import usage_service_pb2 as pb

from services.cli.admin import AccountOption, Admin, admin_command, call, every
from services.cli.instants import SinceOption, UntilOption, instant_from_text, text_of
from services.cli.ledger import entry_row
from services.cli.money import usd_from_nano

app = typer.Typer()
call_app = typer.Typer(help="Single calls and what they cost.", no_args_is_help=True)


class Grouping(enum.StrEnum):
    """How usage is summed."""

    PROFILE = "profile"
    KEY = "key"
    APPLICATION = "application"
    DAY = "day"
    HOUR = "hour"
    UPSTREAM = "upstream"
    ACCOUNT = "account"


KeyFilter = Annotated[list[str] | None, typer.Option("--key", help="Only this API key (its id). May be repeated.")]
ApplicationFilter = Annotated[list[str] | None, typer.Option("--application", help="Only this application.")]
ProfileFilter = Annotated[list[str] | None, typer.Option("--profile", help="Only this profile.")]
UpstreamFilter = Annotated[list[str] | None, typer.Option("--upstream", help="Only this upstream.")]
MOST_GROUPINGS = 2


@admin_command(app, "usage")
def usage(
    admin: Admin,
    account: Annotated[str, typer.Option("--account", help="Account id or name; all accounts when left out.")] = "",
    by: Annotated[list[Grouping] | None, typer.Option("--by", help="How to group; may be given twice.")] = None,
    since: SinceOption = "",
    until: UntilOption = "",
    key: KeyFilter = None,
    application: ApplicationFilter = None,
    profile: ProfileFilter = None,
    upstream: UpstreamFilter = None,
) -> None:
    """Sum usage (the last 30 days, if nothing else is said) in groups."""
    groupings = by or [Grouping.PROFILE]
    if len(groupings) > MOST_GROUPINGS:
        raise ValueError("--by may be given twice at most")
    request = pb.SummarizeUsageRequest(
        account_id=admin.account_id(account) if account else "",
        since=instant_from_text(since),
        until=instant_from_text(until),
        group_by=_grouping(groupings[0]),
        then_by=_grouping(groupings[1]) if len(groupings) > 1 else pb.USAGE_GROUPING_UNSPECIFIED,
        filter=pb.UsageFilter(key_ids=key, applications=application, profiles=profile, upstreams=upstream),
    )
    groups: list[pb.UsageSummary] = []
    while True:
        page = call(admin.usage.SummarizeUsage, request)
        groups += page.groups
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    names = ["group", "then_group"][: len(groupings)]
    total = _summary_row(page.total)
    shown = [*(_summary_row(group) for group in groups)]
    if not admin.report.is_json and groups:
        shown.append({**total, "group": "total"})
    columns = [*names, "calls", "input_tokens", "output_tokens", "cache_read_tokens", "charged_usd"]
    admin.report.rows("groups", columns, shown, total=total)


def _grouping(grouping: Grouping) -> pb.UsageGrouping.ValueType:
    return pb.UsageGrouping.Value(f"USAGE_GROUPING_{grouping.name}")


def _summary_row(summary: pb.UsageSummary) -> dict[str, str | int]:
    charged: token_usage_pb2.TokenUsage = summary.charged
    return {
        "group": summary.group,
        "then_group": summary.then_group,
        "calls": summary.calls,
        "input_tokens": charged.input_tokens,
        "output_tokens": charged.output_tokens,
        "cache_read_tokens": charged.cache_read_tokens,
        "charged_nano_usd": summary.charged_nano_usd,
        "charged_usd": usd_from_nano(summary.charged_nano_usd),
    }


@admin_command(call_app, "list")
def list_calls(
    admin: Admin,
    account: AccountOption,
    most: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=10_000)] = 50,
    since: SinceOption = "",
    until: UntilOption = "",
    key: KeyFilter = None,
    application: ApplicationFilter = None,
    profile: ProfileFilter = None,
    upstream: UpstreamFilter = None,
) -> None:
    """List an account's newest calls."""
    request = pb.ListUsageRequest(
        account_id=admin.account_id(account),
        since=instant_from_text(since),
        until=instant_from_text(until),
        filter=pb.UsageFilter(key_ids=key, applications=application, profiles=profile, upstreams=upstream),
    )
    rows = [_call_row(record) for record in every(admin.usage.ListUsage, request, "records", most)]
    admin.report.rows("calls", ["recorded_at", "call_id", "profile", "rule", "charged_usd", "flags"], rows)


@admin_command(call_app, "show")
def show_call(admin: Admin, call_id: Annotated[str, typer.Argument(metavar="ID", help="The call's id.")]) -> None:
    """Show one call: who made it, what each class of tokens cost, and its entries in the ledger."""
    found: pb.GetCallResponse = call(admin.usage.GetCall, pb.GetCallRequest(call_id=call_id))
    row = _call_row(found.record)
    lines = [
        {
            "token_class": line.token_class,
            "quantity": line.quantity,
            "unit_price_nano_usd": line.unit_price_nano_usd,
            "cost_nano_usd": line.cost_nano_usd,
            "cost_usd": usd_from_nano(line.cost_nano_usd),
        }
        for line in found.lines
    ]
    entries = [entry_row(entry) for entry in found.entries]
    if admin.report.is_json:
        admin.report.record("Call", {**row, "lines": lines, "entries": entries, "net_nano_usd": found.net_nano_usd})
        return
    hidden = {"charged_nano_usd", "flags"}
    facts = {name: value for name, value in row.items() if name not in hidden and value != ""}
    admin.report.record("Call", facts | {"flags": ", ".join(row["flags"]) or "none"})
    admin.report.rows("cost", ["token_class", "quantity", "unit_price_nano_usd", "cost_usd"], lines)
    admin.report.rows("entries", ["posted_at", "amount_usd", "rule", "counterpart", "entry_id"], entries)


def _call_row(record: pb.UsageRecord) -> dict[str, Any]:
    event = record.event
    return {
        "call_id": event.call_id,
        "account_id": event.account_id,
        "key_id": event.key_id,
        "application": event.application,
        "operation": event.operation,
        "requested_model": event.requested_model,
        "profile": event.profile,
        "upstream": event.upstream,
        "started_at": text_of(event.started_at),
        "recorded_at": text_of(record.recorded_at),
        "rule": record.rule,
        "flags": list(record.flags),
        "price_book_version": event.price_book_version,
        "charged_nano_usd": record.charged_nano_usd,
        "charged_usd": usd_from_nano(record.charged_nano_usd),
    }
