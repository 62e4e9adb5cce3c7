"""Metering as its callers see it: the real servicers and ledger in process, and an auth-and-limits that can fail.

Owns wiring for tests; refuses to assert anything.
"""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mws.metering.v1 import ledger_service_pb2 as ledger_pb
from mws.metering.v1 import metering_service_pb2 as pb
from mws.metering.v1.ledger_service_pb2_grpc import LedgerServiceStub
from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from mws.metering.v1.usage_service_pb2_grpc import UsageServiceStub

from services.link.in_process import InProcessChannel
from services.metering.adapters.sqlite_ledger import open_ledger
from services.metering.adapters.sqlite_reports import open_reports
from services.metering.app import method_table
from services.metering.outbox import Outbox
from services.metering.payments import PaymentProvider
from services.metering.ports import BalanceListener, BalanceNotice, LedgerStore
from services.runtime.callers import BearerCallers, ServiceTokens, mint_secrets
from services.runtime.calls import Caller, CallerClass, MethodTable
from services.runtime.errors import InvalidCredentialError, ServiceUnavailableError
from services.runtime.guard import ServiceGuard
from services.runtime.logging import EventLog
from services.runtime.server import GrpcListener, Health
from tests.contract.metering.building import ACCOUNT, PRICES, VERSION

TIMEOUT_S = 20.0


@dataclass
class ScriptedAuth:
    """Takes balance changes like auth-and-limits: applied if newer, ids always closed. Fails while `is_down`."""

    is_down: bool = False
    seqs: dict[str, int] = field(default_factory=dict)
    balances: dict[str, int] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    batches: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def balances_changed(self, notices: Sequence[BalanceNotice]) -> None:
        if self.is_down:
            raise ServiceUnavailableError("not now")
        assert len({notice.account_id for notice in notices}) == len(notices), "an account twice in one batch"
        async with self.arrived:
            for notice in notices:
                if notice.seq > self.seqs.get(notice.account_id, 0):
                    self.seqs[notice.account_id] = notice.seq
                    self.balances[notice.account_id] = notice.balance_nano_usd
                self.closed += notice.closed_call_ids
            self.batches += 1
            self.arrived.notify_all()

    async def until_closed(self, *call_ids: str) -> None:
        """Waits until the holds of these calls are closed."""
        async with asyncio.timeout(TIMEOUT_S), self.arrived:
            await self.arrived.wait_for(lambda: set(call_ids) <= set(self.closed))


class Stubs:
    """The three services for one caller. (The stubs' types know synchronous calls only, hence Any.)"""

    def __init__(self, channel: Any) -> None:
        self.metering: Any = MeteringServiceStub(channel)
        self.ledger: Any = LedgerServiceStub(channel)
        self.usage: Any = UsageServiceStub(channel)


@dataclass
class Running:
    """A running metering."""

    store: LedgerStore
    auth: BalanceListener
    by_class: dict[CallerClass, Stubs]
    table: MethodTable

    @property
    def inference(self) -> Any:
        return self.by_class[CallerClass.INFERENCE].metering

    @property
    def admin(self) -> Stubs:
        return self.by_class[CallerClass.ADMIN]

    @property
    def team(self) -> Stubs:
        return self.by_class[CallerClass.TEAM]

    async def record(self, *events: pb.UsageEvent) -> list[pb.RecordOutcome]:
        """RecordUsage, as inference calls it."""
        response = await self.inference.RecordUsage(pb.RecordUsageRequest(events=events), timeout=TIMEOUT_S)
        return list(response.outcomes)

    async def resolve(self, *call_ids: str) -> list[pb.CallOutcome]:
        """ResolveOutcomes, as auth calls it."""
        stub = self.by_class[CallerClass.AUTH].metering
        return list(
            (await stub.ResolveOutcomes(pb.ResolveOutcomesRequest(call_ids=call_ids), timeout=TIMEOUT_S)).outcomes
        )

    async def balance(self, account_id: str = ACCOUNT) -> ledger_pb.GetBalanceResponse:
        """GetBalance, as an administrator calls it."""
        request = ledger_pb.GetBalanceRequest(account_id=account_id)
        response: ledger_pb.GetBalanceResponse = await self.admin.ledger.GetBalance(request, timeout=TIMEOUT_S)
        return response

    async def violations(self) -> list[str]:
        """CheckLedger's findings, as text."""
        response = await self.admin.ledger.CheckLedger(ledger_pb.CheckLedgerRequest(), timeout=TIMEOUT_S)
        return [f"{found.rule} {found.resource_id} {found.detail}" for found in response.violations]


@asynccontextmanager
async def running_metering(
    folder: Path,
    auth: BalanceListener | None = None,
    *,
    low_balance: tuple[int, ...] = (),
    payments: PaymentProvider | None = None,
) -> AsyncIterator[Running]:
    """Metering on a ledger in a folder, with its price book registered; ends like a crash: nothing is drained."""
    auth = auth or ScriptedAuth()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_ledger(folder / "ledger.sqlite3", write_timeout_s=10.0))
        reports = await stack.enter_async_context(open_reports(folder / "ledger.sqlite3"))
        outbox = Outbox(store, auth)
        delivery = asyncio.get_running_loop().create_task(outbox.run())
        stack.callback(delivery.cancel)
        table = method_table(store, reports, outbox, low_balance, payments)
        guard = ServiceGuard(table, EventLog(io.BytesIO(), process="test", level=logging.INFO, is_pretty=False))
        by_class: dict[CallerClass, Stubs] = {}
        for caller_class in CallerClass:
            account_id = ACCOUNT if caller_class is CallerClass.TEAM else ""
            channel = InProcessChannel(table, guard, Caller(caller_class, f"{caller_class}-0", account_id))
            stack.push_async_callback(channel.close)
            by_class[caller_class] = Stubs(channel)
        running = Running(store, auth, by_class, table)
        await running.inference.RegisterPriceBook(a_price_book(), timeout=TIMEOUT_S)
        yield running


API_KEY = "mws_live_of_a_team_of_the_account"


@asynccontextmanager
async def listening(running: Running, secrets_dir: Path, port: int = 0) -> AsyncIterator[int]:
    """Serves a running metering over plain gRPC, to services and to one team; yields its port."""

    async def team_of(token: str) -> Caller:
        if token != API_KEY:
            raise InvalidCredentialError("nobody pays")
        return Caller(CallerClass.TEAM, "key-1", ACCOUNT)

    mint_secrets(secrets_dir)
    guard = ServiceGuard(running.table, EventLog(io.BytesIO(), process="test", level=logging.INFO, is_pretty=False))
    callers = BearerCallers(ServiceTokens.read(secrets_dir), team_of)
    listener = GrpcListener(running.table, guard, callers, Health())
    try:
        yield await listener.start(f"127.0.0.1:{port}")
    finally:
        await listener.drain(0.0)


def a_price_book() -> pb.RegisterPriceBookRequest:
    """The book that test events name."""
    return pb.RegisterPriceBookRequest(version=VERSION, prices=(pb.ProfilePrice(**price._asdict()) for price in PRICES))
