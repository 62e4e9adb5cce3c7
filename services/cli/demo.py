"""`mws demo`: a first account to try the gateway with, and the request to send.

Owns the demonstration account of a data directory; it is a convenience of development machines alone.
"""

import json
import os
from pathlib import Path

import typer
from mws.admission.v1 import account_service_pb2 as account_pb
from mws.admission.v1 import key_service_pb2 as key_pb
from mws.metering.v1 import ledger_service_pb2 as ledger_pb

from services.cli import running
from services.cli.admin import Admin, admin_command, call
from services.runtime.errors import NotFoundError, ServiceUnavailableError
from services.runtime.ids import new_id

app = typer.Typer()
DEMO_CREDIT_NANO_USD = 25_000_000_000


@admin_command(app, "demo")
def demo(admin: Admin) -> None:
    """Print the base URL, an API key with demo credit (made at the first time), and a `curl` to try."""
    data_dir = admin.data_dir
    there = running.find(data_dir)
    if there is None:
        raise ServiceUnavailableError(f"no gateway runs on {data_dir}; start it with `make up` or `mws up`")
    base_url = there.base_url
    api_key = _kept_key(admin, data_dir / "demo.json") or _new_key(admin, data_dir / "demo.json")
    admin.report.record(
        "The gateway is serving",
        {"base_url": f"{base_url}/v1", "api_key": api_key, "curl": _curl(base_url, api_key)},
        for_people={"base_url": f"{base_url}/v1", "api_key": api_key, "docs": f"{base_url}/docs"},
    )
    admin.report.plain(f"\nTry it:\n\n{_curl(base_url, api_key)}\n\nStop it with `make down`.")


def _kept_key(admin: Admin, path: Path) -> str | None:
    try:
        kept = json.loads(path.read_text())
        call(admin.accounts.GetAccount, account_pb.GetAccountRequest(account_id=kept["account_id"]))
    except (OSError, ValueError, NotFoundError):
        return None
    return str(kept["api_key"])


def _new_key(admin: Admin, path: Path) -> str:
    request = account_pb.CreateAccountRequest(request_id=new_id(), name="demo")
    account_id = call(admin.accounts.CreateAccount, request).account.account_id
    call(
        admin.ledger.GrantCredits,
        ledger_pb.GrantCreditsRequest(
            account_id=account_id,
            idempotency_key="demo",
            amount_nano_usd=DEMO_CREDIT_NANO_USD,
            kind=ledger_pb.CREDIT_KIND_PURCHASE,
        ),
    )
    api_key = str(call(admin.keys.CreateKey, key_pb.CreateKeyRequest(account_id=account_id, name="demo")).api_key)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"account_id": account_id, "api_key": api_key}, file)
    return api_key


def _curl(base_url: str, api_key: str) -> str:
    body = json.dumps(
        {
            "model": "dragon",
            "max_tokens": 300,
            "stream": True,
            "messages": [{"role": "user", "content": "What makes a good gateway?"}],
        }
    )
    return (
        f"curl -N {base_url}/v1/messages \\\n  -H 'Authorization: Bearer {api_key}' \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d '{body}'"
    )
