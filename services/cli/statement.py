"""`mws statement`: a month of an account, from its opening to its closing balance.

Owns the command's options and its output; every amount is the service's.
"""

from typing import Annotated, Any

import typer
from mws.metering.v1 import ledger_service_pb2 as pb

from services.cli.admin import AccountOption, Admin, admin_command, call
from services.cli.instants import this_month
from services.cli.money import usd_from_nano

app = typer.Typer()


@admin_command(app, "statement")
def statement(
    admin: Admin,
    account: AccountOption,
    month: Annotated[str, typer.Option(help="For example 2026-11 (UTC). Default: this month.")] = "",
) -> None:
    """Show an account's statement of a month: opening, credits, charges by profile, closing."""
    request = pb.GetStatementRequest(account_id=admin.account_id(account), month=month or this_month())
    found: pb.GetStatementResponse = call(admin.ledger.GetStatement, request)
    credits_, charges = [_line(line) for line in found.credits], [_line(line) for line in found.charges]
    if admin.report.is_json:
        admin.report.record(
            "Statement",
            {
                "account_id": found.account_id,
                "month": found.month,
                "opening_nano_usd": found.opening_nano_usd,
                "credits": credits_,
                "charges": charges,
                "closing_nano_usd": found.closing_nano_usd,
                "is_final": found.is_final,
            },
        )
        return
    rows = [
        {"line": "opening balance", "amount_usd": usd_from_nano(found.opening_nano_usd)},
        *({**line, "line": line["name"]} for line in credits_),
        *({**line, "line": f"calls: {line['name']}"} for line in charges),
        {"line": "closing balance", "amount_usd": usd_from_nano(found.closing_nano_usd)},
    ]
    state = "final" if found.is_final else "so far"
    title = f"Statement of {found.month} ({state}) for {found.account_id}"
    admin.report.rows(title, ["line", "count", "input_tokens", "output_tokens", "amount_usd"], rows)


def _line(line: pb.StatementLine) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": line.name,
        "count": line.count,
        "amount_nano_usd": line.amount_nano_usd,
        "amount_usd": usd_from_nano(line.amount_nano_usd),
    }
    if line.HasField("charged"):
        row |= {"input_tokens": line.charged.input_tokens, "output_tokens": line.charged.output_tokens}
    return row
