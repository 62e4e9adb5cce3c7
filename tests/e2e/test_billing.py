"""What an account used and owes, asked in every way there is, after calls through the whole gateway.

Owns that all of them agree, and that a team sees its own account alone; refuses to test each report by itself.
"""

import csv
from pathlib import Path

import grpc
import pytest
from mws.metering.v1 import ledger_service_pb2 as ledger_pb
from mws.metering.v1 import usage_service_pb2 as pb
from mws.metering.v1.ledger_service_pb2_grpc import LedgerServiceStub
from mws.metering.v1.usage_service_pb2_grpc import UsageServiceStub

from tests.gateway import Gateway
from tests.load import Caller, eventually, messages
from tests.plain_grpc import bearer, failure_of

pytestmark = pytest.mark.parametrize("gateway", ["link"], indirect=True)
CREDIT = 100_000_000_000
CALLS = 5


async def test_every_report_tells_the_same(gateway: Gateway, tmp_path: Path) -> None:
    account = gateway.account("every report")
    caller = Caller(gateway.base_url, account.api_key)
    statuses = [(await caller.send(messages(f"call {turn}", max_tokens=20))).status for turn in range(CALLS)]
    of = ("--account", account.account_id)

    def calls() -> int:
        return int(gateway.mws("usage", *of)["total"]["calls"])

    await eventually(lambda: calls() == CALLS)
    balance = gateway.mws("balance", *of)["balance_nano_usd"]
    spent = CREDIT - balance
    file = tmp_path / "costs.csv"
    gateway.mws("export", *of, "--output", str(file))
    with file.open(newline="") as lines:
        exported = sum(int(row["x_BilledNanoUsd"]) for row in csv.DictReader(lines))
    statement = gateway.mws("statement", *of)
    shown = [gateway.mws("call", "show", row["call_id"]) for row in gateway.mws("call", "list", *of)["calls"]]

    assert statuses == [200] * CALLS
    assert spent > 0
    for by in ("profile", "key", "application", "upstream", "day", "hour", "account"):
        assert gateway.mws("usage", *of, "--by", by)["total"]["charged_nano_usd"] == spent, by
    assert exported == spent == sum(found["net_nano_usd"] for found in shown)
    assert -spent == sum(line["amount_nano_usd"] for line in statement["charges"])
    assert statement["closing_nano_usd"] == balance
    assert file.read_text().find(account.api_key) == -1


async def test_a_team_with_a_key_sees_its_own_account_alone(gateway: Gateway) -> None:
    own, other = gateway.account("own"), gateway.account("other")
    metadata = bearer(own.api_key)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_base_port + 2}") as channel:
        ledger, usage = LedgerServiceStub(channel), UsageServiceStub(channel)
        balance = await ledger.GetBalance(ledger_pb.GetBalanceRequest(), metadata=metadata, timeout=20)
        exported = [piece async for piece in usage.ExportUsage(pb.ExportUsageRequest(), metadata=metadata, timeout=20)]
        failures = []
        for ask in (
            ledger.GetBalance(ledger_pb.GetBalanceRequest(account_id=other.account_id), metadata=metadata, timeout=20),
            ledger.GetStatement(
                ledger_pb.GetStatementRequest(account_id=other.account_id, month="2026-01"),
                metadata=metadata,
                timeout=20,
            ),
            usage.SummarizeUsage(pb.SummarizeUsageRequest(account_id=other.account_id), metadata=metadata, timeout=20),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask
            failures.append(failure_of(refused.value))

    assert (balance.account_id, balance.balance_nano_usd) == (own.account_id, CREDIT)
    assert exported[-1].is_last
    assert {(failure.code, failure.reason) for failure in failures} == {
        (grpc.StatusCode.PERMISSION_DENIED, "ACCOUNT_FOREIGN")
    }
