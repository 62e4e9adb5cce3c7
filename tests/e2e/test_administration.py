"""What the `mws` command administers: accounts, keys, plans, teams and the trail that every change leaves.

Owns that a change made by the command acts at the next call; the commands about money are in `test_command_line.py`.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from mws.admission.v1 import admission_service_pb2
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub

from services.runtime.ids import new_id
from tests.gateway import Gateway
from tests.load import Caller, messages

pytestmark = pytest.mark.parametrize("gateway", ["link"], indirect=True)


async def status(gateway: Gateway, api_key: str) -> int:
    return (await Caller(gateway.base_url, api_key).send(messages("hi"))).status


def decided(gateway: Gateway, api_key: str) -> grpc.StatusCode:
    """What the next decision says, past the edge, which goes on refusing a refused key for some seconds."""
    request = admission_service_pb2.GetLimitsRequest()
    with grpc.insecure_channel(gateway.grpc_target("auth")) as channel:
        try:
            AdmissionServiceStub(channel).GetLimits(
                request, metadata=(("authorization", f"Bearer {api_key}"),), timeout=20
            )
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def refused(gateway: Gateway, *arguments: str) -> str:
    done = gateway.run(*arguments, "--json")
    assert done.exit_code == 1
    reason: str = json.loads(done.stderr)["error"]["reason"]
    return reason


async def test_a_plan_suspension_and_ceilings_act_at_the_next_call(gateway: Gateway) -> None:
    made = gateway.mws("account", "create", "--name", "moving", "--credit-usd", "1")
    account, api_key = ["--account", made["account_id"]], made["api_key"]

    def update(*options: str) -> Any:
        return gateway.mws("account", "update", *account, *options)

    assert update("--plan", "enterprise", "--name", "moved")["tier"] == "enterprise"
    assert update("--rpm", "1")["requests_per_minute"] == 1
    assert [await status(gateway, api_key) for _ in range(2)] == [200, 429]
    assert update("--rpm", "0")["requests_per_minute"] == 150_000
    assert await status(gateway, api_key) == 200
    assert update("--suspend")["suspended"]
    assert await status(gateway, api_key) == 401
    update("--resume")
    assert decided(gateway, api_key) is grpc.StatusCode.OK
    assert refused(gateway, "account", "update", *account) == "REQUEST_INVALID"
    assert refused(gateway, "account", "update", *account, "--plan", "none such") == "REQUEST_INVALID"


async def test_a_closed_account_stays_closed(gateway: Gateway) -> None:
    made = gateway.mws("account", "create", "--name", "closing", "--credit-usd", "1")
    account = ["--account", made["account_id"]]

    closed = gateway.mws("account", "close", *account)

    assert closed["closed_at"]
    assert gateway.mws("account", "close", *account) == closed
    gateway.mws("account", "update", *account, "--resume")
    assert await status(gateway, made["api_key"]) == 401
    assert refused(gateway, "key", "create", *account) == "NOT_FOUND"
    team = ["--issuer", "https://idp.test", "--subject", made["account_id"]]
    assert refused(gateway, "team", "create", *account, *team) == "NOT_FOUND"
    assert gateway.mws("balance", *account)["balance_nano_usd"] == 1_000_000_000


def test_a_repeated_creation_makes_one_account_with_one_key_and_one_credit(gateway: Gateway) -> None:
    options = ["--name", "again", "--credit-usd", "5", "--request-id", new_id()]
    first, again = (gateway.mws("account", "create", *options) for _ in range(2))

    assert (again["account_id"], again["key_id"], again["api_key"]) == (first["account_id"], first["key_id"], None)
    assert again["balance_nano_usd"] == 5_000_000_000


async def test_a_key_is_renamed_used_and_ended(gateway: Gateway) -> None:
    account = gateway.account("keys")
    made = gateway.mws("key", "create", "--account", account.account_id, "--expires-at", "2999-01-31")
    key = ["--key", made["key_id"]]

    assert gateway.mws("key", "rename", *key, "--name", "ci")["name"] == "ci"
    assert await status(gateway, made["api_key"]) == 200
    (listed,) = [
        row
        for row in gateway.mws("key", "list", "--account", account.account_id)["keys"]
        if row["key_id"] == made["key_id"]
    ]
    assert listed["prefix"] == made["api_key"][:13]
    assert (listed["state"], listed["expires_at"]) == ("active", "2999-01-31T00:00:00Z")
    assert datetime.now(UTC) - datetime.fromisoformat(listed["last_used_at"]) < timedelta(minutes=2)
    assert gateway.mws("key", "expire", *key)["state"] == "expired"
    assert await status(gateway, made["api_key"]) == 401
    assert gateway.mws("key", "expire", *key, "--never")["state"] == "active"
    assert decided(gateway, made["api_key"]) is grpc.StatusCode.OK
    assert await status(gateway, account.api_key) == 200


def test_plans_are_listed_with_their_tiers(gateway: Gateway) -> None:
    plans = gateway.mws("plan", "list")["plans"]

    start = next(row for row in plans if row["plan"] == "pay_as_you_go")
    assert (start["tier"], start["from_paid_usd"], start["is_default"]) == ("start", "0.00", True)
    assert [row["from_paid_nano_usd"] for row in plans if row["plan"] == "pay_as_you_go"] == [
        usd * 10**9 for usd in (0, 25, 100, 500, 2_500)
    ]


def test_promotional_credit_moves_no_tier_and_purchases_do(gateway: Gateway) -> None:
    made = gateway.mws("account", "create", "--name", "tiers", "--promo-usd", "10000")
    account = ["--account", made["account_id"]]
    tiers = [gateway.mws("account", "show", *account)["tier"]]
    for number, usd in enumerate(("24.99", "0.01", "75")):
        gateway.mws("credit", "grant", *account, "--usd", usd, "--idempotency-key", f"tier-{new_id()}-{number}")
        tiers.append(gateway.mws("account", "show", *account)["tier"])

    assert tiers == ["start", "start", "build", "grow"]


def test_every_change_is_in_the_audit_log_and_no_secret_is(gateway: Gateway) -> None:
    account = gateway.account("audited")
    (key,) = gateway.mws("key", "list", "--account", account.account_id)["keys"]
    team = ["--issuer", "https://idp.test", "--subject", account.account_id]
    made = gateway.mws("team", "create", "--account", account.account_id, *team)
    gateway.mws("team", "delete", "--team", made["team_id"])
    gateway.mws("key", "revoke", "--key", key["key_id"])

    events = gateway.mws("audit", "list", "--account", account.account_id)["events"]

    assert [(event["actor"], event["action"], event["resource_id"]) for event in events] == [
        ("admin", "key.revoked", key["key_id"]),
        ("admin", "team.deleted", made["team_id"]),
        ("admin", "team.created", made["team_id"]),
        ("admin", "key.created", key["key_id"]),
        ("admin", "account.created", account.account_id),
    ]
    assert account.api_key not in json.dumps(events)
    assert len(gateway.mws("audit", "list", "--most", "3")["events"]) == 3


@pytest.mark.parametrize("arguments", [["account", "list"], ["plan", "list"], ["audit", "list", "--most", "5"]])
def test_people_read_tables(gateway: Gateway, arguments: list[str]) -> None:
    done = gateway.run(*arguments)

    assert done.exit_code == 0
    assert "{" not in done.stdout.splitlines()[0]
