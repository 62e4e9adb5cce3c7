"""The `mws` command: the one entrance for people and scripts that run the gateway.

Owns the command tree; each group of commands lives in a module of its own.
"""

import os

# Read by gRPC when it is loaded: the manager forks and executes while channels are open, which needs no fork handlers.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # noqa: TID251 - a switch for gRPC, no setting of ours

import typer

from services.cli import (
    accounts,
    audit,
    credit,
    demo,
    export,
    keys,
    ledger,
    plans,
    statement,
    up,
    upstreams,
    usage,
)

app = typer.Typer(
    name="mws",
    help="Run and administer an MWS gateway.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback would print local variables, and those hold tokens
    rich_markup_mode=None,
)
for group in (up.app, demo.app, credit.app, usage.app, statement.app, export.app):
    app.registered_commands += group.registered_commands
app.add_typer(accounts.account_app, name="account")
app.add_typer(keys.app, name="key")
app.add_typer(accounts.team_app, name="team")
app.add_typer(plans.app, name="plan")
app.add_typer(audit.app, name="audit")
app.add_typer(credit.credit_app, name="credit")
app.add_typer(usage.call_app, name="call")
app.add_typer(ledger.ledger_app, name="ledger")
app.add_typer(upstreams.app, name="upstream")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
