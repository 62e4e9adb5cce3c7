"""`mws audit`: who changed what.

Owns the command and its output; the log is written by the service, with every change.
"""

from typing import Annotated

import typer
from mws.admission.v1 import audit_service_pb2 as audit_pb

from services.cli.admin import LARGEST_PAGE, Admin, admin_command, call

app = typer.Typer(help="Who changed which account, key or team.", no_args_is_help=True)


@admin_command(app, "list")
def list_events(
    admin: Admin,
    account: Annotated[str, typer.Option("--account", help="Only of this account; of all when left out.")] = "",
    most: Annotated[int, typer.Option(help="How many, newest first.", min=1)] = 50,
) -> None:
    """List the newest changes."""
    request = audit_pb.ListAuditEventsRequest(account_id=admin.account_id(account) if account else "")
    found: list[audit_pb.AuditEvent] = []
    while len(found) < most:
        request.page_size = min(most - len(found), LARGEST_PAGE)
        page = call(admin.audit.ListAuditEvents, request)
        found += page.events
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    rows = [
        {
            "at": event.at.ToJsonString(),
            "actor": event.actor,
            "action": event.action,
            "account_id": event.account_id,
            "resource_id": event.resource_id,
            "changes": dict(event.changes),
            "event_id": event.event_id,
        }
        for event in found
    ]
    admin.report.rows("events", ["at", "actor", "action", "resource_id", "changes"], rows)
