"""`mws plan`: the plans that accounts can be on.

Owns the command and its output; plans are changed in the plan file.
"""

import typer
from mws.admission.v1 import plan_service_pb2 as plan_pb

from services.cli.admin import Admin, admin_command, every
from services.cli.money import usd_from_nano

app = typer.Typer(help="Plans and their tiers.", no_args_is_help=True)


@admin_command(app, "list")
def list_plans(admin: Admin) -> None:
    """List every tier of every plan: from which lifetime purchases on, and its ceilings."""
    plans = every(admin.plans.ListPlans, plan_pb.ListPlansRequest(), "plans")
    rows = [
        {
            "plan": plan.name,
            "is_default": plan.is_default,
            "is_subscription": plan.is_subscription,
            "tier": tier.name,
            "from_paid_nano_usd": tier.from_paid_nano_usd,
            "from_paid_usd": usd_from_nano(tier.from_paid_nano_usd),
            "requests_per_minute": tier.requests_per_minute,
            "tokens_per_minute": tier.tokens_per_minute,
            "concurrent_calls": tier.concurrent_calls,
        }
        for plan in plans
        for tier in plan.tiers
    ]
    columns = ["plan", "tier", "from_paid_usd", "requests_per_minute", "tokens_per_minute", "concurrent_calls"]
    admin.report.rows("plans", columns, rows)
