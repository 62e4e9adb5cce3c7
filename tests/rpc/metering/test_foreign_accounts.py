"""A team sees its own account and no other, whichever way its call comes in.

Owns every method that reads money, over plain gRPC with an API key and over the link; refuses to test what they answer.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from mws.metering.v1 import ledger_service_pb2 as ledger_pb
from mws.metering.v1 import usage_service_pb2 as usage_pb

from services.metering import translate
from services.runtime.channel import connect
from services.runtime.errors import CallerNotAllowedError, ForeignAccountError, GatewayError, NotFoundError
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, an_event
from tests.rpc.metering.serving import API_KEY, TIMEOUT_S, Running, Stubs, listening, running_metering

Ask = Callable[[Stubs, str], Any]
OTHER = "0199b000-0000-7000-8000-00000000000f"
MONTH = "2026-10"
READS: dict[str, Ask] = {
    "GetBalance": lambda stubs, account: stubs.ledger.GetBalance(
        ledger_pb.GetBalanceRequest(account_id=account), timeout=TIMEOUT_S
    ),
    "ListEntries": lambda stubs, account: stubs.ledger.ListEntries(
        ledger_pb.ListEntriesRequest(account_id=account), timeout=TIMEOUT_S
    ),
    "ListCredits": lambda stubs, account: stubs.ledger.ListCredits(
        ledger_pb.ListCreditsRequest(account_id=account), timeout=TIMEOUT_S
    ),
    "ListBalanceEvents": lambda stubs, account: stubs.ledger.ListBalanceEvents(
        ledger_pb.ListBalanceEventsRequest(account_id=account), timeout=TIMEOUT_S
    ),
    "GetStatement": lambda stubs, account: stubs.ledger.GetStatement(
        ledger_pb.GetStatementRequest(account_id=account, month=MONTH), timeout=TIMEOUT_S
    ),
    "SummarizeUsage": lambda stubs, account: stubs.usage.SummarizeUsage(
        usage_pb.SummarizeUsageRequest(account_id=account), timeout=TIMEOUT_S
    ),
    "ListUsage": lambda stubs, account: stubs.usage.ListUsage(
        usage_pb.ListUsageRequest(account_id=account), timeout=TIMEOUT_S
    ),
    "ExportUsage": lambda stubs, account: _drained(
        stubs.usage.ExportUsage(usage_pb.ExportUsageRequest(account_id=account), timeout=TIMEOUT_S)
    ),
}


async def _drained(responses: Any) -> list[usage_pb.ExportUsageResponse]:
    return [response async for response in responses]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_metering(tmp_path) as metering:
        await metering.record(translate.event_to_pb(an_event()), translate.event_to_pb(an_event(account_id=OTHER)))
        yield metering


@pytest.fixture(params=["link", "plain gRPC"])
async def team(request: pytest.FixtureRequest, running: Running, tmp_path: Path) -> AsyncIterator[Stubs]:
    """A team of ACCOUNT."""
    async with AsyncExitStack() as stack:
        if request.param == "link":
            yield running.team
            return
        port = await stack.enter_async_context(listening(running, tmp_path / "secrets"))
        channel = connect([f"127.0.0.1:{port}"], transport="grpc", token=API_KEY, name="metering")
        yield Stubs(channel)
        await channel.close(None)


async def test_a_team_reads_its_own_account_named_or_not(team: Stubs) -> None:
    for name, ask in READS.items():
        assert await ask(team, "") == await ask(team, ACCOUNT) or name in {"SummarizeUsage", "ExportUsage"}


async def test_no_read_shows_another_account(team: Stubs) -> None:
    for name, ask in READS.items():
        with pytest.raises(ForeignAccountError):
            await ask(team, OTHER)
        assert ForeignAccountError.code is grpc.StatusCode.PERMISSION_DENIED, name


async def test_a_call_of_another_account_is_not_there(running: Running, team: Stubs) -> None:
    listed = await running.admin.usage.ListUsage(usage_pb.ListUsageRequest(account_id=OTHER), timeout=TIMEOUT_S)
    (foreign,) = [record.event.call_id for record in listed.records]

    for request, error in (
        (usage_pb.GetCallRequest(call_id=foreign), NotFoundError),
        (usage_pb.GetCallRequest(call_id=new_id()), NotFoundError),
        (usage_pb.GetCallRequest(call_id=foreign, account_id=OTHER), ForeignAccountError),
    ):
        with pytest.raises(error):
            await team.usage.GetCall(request, timeout=TIMEOUT_S)
    shown = await running.admin.usage.GetCall(usage_pb.GetCallRequest(call_id=foreign), timeout=TIMEOUT_S)
    assert shown.record.event.account_id == OTHER


async def test_a_team_moves_and_checks_nothing(team: Stubs) -> None:
    for method, request in (
        (team.ledger.GrantCredits, ledger_pb.GrantCreditsRequest(account_id=ACCOUNT)),
        (team.ledger.RefundCredits, ledger_pb.RefundCreditsRequest(account_id=ACCOUNT)),
        (team.ledger.CorrectEntry, ledger_pb.CorrectEntryRequest(account_id=ACCOUNT)),
        (team.ledger.CheckLedger, ledger_pb.CheckLedgerRequest(account_id=ACCOUNT)),
    ):
        with pytest.raises(CallerNotAllowedError):
            await method(request, timeout=TIMEOUT_S)


async def test_a_key_of_nobody_reads_nothing(running: Running, tmp_path: Path) -> None:
    async with listening(running, tmp_path / "secrets") as port:
        channel = connect([f"127.0.0.1:{port}"], transport="grpc", token="mws_live_unknown", name="metering")
        for ask in READS.values():
            with pytest.raises(GatewayError):
                await ask(Stubs(channel), ACCOUNT)
        await channel.close(None)
