"""`mws upstream`: who serves the profiles, and how they are doing.

Owns the commands' options and their output; every rule is the service's.
"""

from typing import Annotated

import typer
from mws.inference.v1 import routing_service_pb2 as pb

from services.cli.admin import Admin, admin_command, call

app = typer.Typer(help="Upstreams of the profiles.", no_args_is_help=True)

ProfileOption = Annotated[str, typer.Option(help="The profile's slug.")]
UpstreamOption = Annotated[str, typer.Option(help="The upstream's name within the profile.")]


@admin_command(app, "list")
def list_upstreams(admin: Admin, profile: ProfileOption = "") -> None:
    """List upstreams with their health, as this replica sees it."""
    request = pb.ListUpstreamsRequest(page_size=1000, profile=profile)
    rows = [_row(upstream) for upstream in call(admin.routing.ListUpstreams, request).upstreams]
    admin.report.rows(
        "upstreams", ["profile", "name", "dialect", "priority", "health", "in_flight", "calls", "failures"], rows
    )


@admin_command(app, "drain")
def drain(
    admin: Admin,
    profile: ProfileOption,
    upstream: UpstreamOption,
    undo: Annotated[bool, typer.Option("--undo", help="Put it back.")] = False,
) -> None:
    """Take an upstream out of choice; running calls go on."""
    request = pb.SetUpstreamDrainedRequest(profile=profile, upstream=upstream, drained=not undo)
    admin.report.record("Upstream", _row(call(admin.routing.SetUpstreamDrained, request).upstream))


def _row(upstream: pb.Upstream) -> dict[str, str | int]:
    return {
        "profile": upstream.profile,
        "name": upstream.name,
        "dialect": upstream.dialect,
        "priority": upstream.priority,
        "weight": upstream.weight,
        "health": _health(upstream.health),
        "in_flight": upstream.in_flight,
        "calls": upstream.calls,
        "failures": upstream.failures,
        "last_failure": upstream.last_failure,
    }


def _health(health: "pb.UpstreamHealth.ValueType") -> str:
    if health == pb.UPSTREAM_HEALTH_UNSPECIFIED:
        return "unknown"  # never called
    return pb.UpstreamHealth.Name(health).removeprefix("UPSTREAM_HEALTH_").lower()
