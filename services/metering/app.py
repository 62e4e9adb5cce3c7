"""The composition root of metering: settings -> ledger -> use cases -> servicers.

Owns what is wired to what, and background work; refuses to hold logic.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Sequence
from typing import Any

import structlog
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from mws.metering.v1.ledger_service_pb2_grpc import add_LedgerServiceServicer_to_server
from mws.metering.v1.metering_service_pb2_grpc import add_MeteringServiceServicer_to_server
from mws.metering.v1.usage_service_pb2_grpc import add_UsageServiceServicer_to_server

from services.metering import answers, granting
from services.metering import low_balance as low_balance_events
from services.metering.adapters.auth_listener import AuthListener
from services.metering.credits import Credits
from services.metering.ledger_servicer import LedgerServicer
from services.metering.metering_servicer import MeteringServicer
from services.metering.migrations import UnknownSchemaError
from services.metering.outbox import Outbox
from services.metering.payments import ManualPayments, PaymentProvider
from services.metering.ports import BalanceEvent, Footprint, LedgerStore, LedgerTransaction
from services.metering.reports import Reports
from services.metering.settings import Settings
from services.metering.stores import Stores, open_stores
from services.metering.usage import Moment
from services.metering.usage_servicer import UsageServicer
from services.runtime.calls import CallerClass, MethodTable
from services.runtime.errors import StoreUnavailableError
from services.runtime.ids import new_id
from services.runtime.process import Process, ProcessFailedError

_log = structlog.get_logger()


def now_us() -> int:
    """Unix time in microseconds."""
    return time.time_ns() // 1_000


async def run(settings: Settings) -> None:
    """Serves metering until the process is asked to end."""
    async with Process(settings, CallerClass.METERING) as process:
        try:
            async with open_stores(settings, lambda: process.is_stopping) as stores:
                await _serve(process, settings, stores)
        except (UnknownSchemaError, OSError) as error:
            _log.error("ledger.cannot_open", detail=str(error))
            raise ProcessFailedError(str(error)) from error
        except StoreUnavailableError:
            _log.info("ledger.not_awaited")  # asked to end before its server answered


async def _serve(process: Process, settings: Settings, stores: Stores) -> None:
    ledger, reports = stores.ledger, stores.reports
    auth = AuthListener(AdmissionServiceStub(process.connect("auth", settings.auth_endpoints)))
    outbox = Outbox(ledger, auth)
    background = [
        process.spawn(outbox.run(), name="outbox"),
        process.spawn(sweep(ledger, settings.sweep_interval_s, settings.low_balance_nano_usd), name="sweeper"),
        process.spawn(stores.upkeep(), name="upkeep"),
    ]
    try:
        table = method_table(ledger, reports, outbox, settings.low_balance_nano_usd)
        await process.serve(table, resolve_caller=auth.team_of)
    finally:
        for task in background:  # both use the ledger, which is closed next
            task.cancel()
        await asyncio.wait(background)


def method_table(
    ledger: LedgerStore,
    reports: Reports,
    outbox: Outbox,
    low_balance: tuple[int, ...] = (),
    payments: PaymentProvider | None = None,
) -> MethodTable:
    """Everything that metering serves."""
    table = MethodTable()
    registry: Any = table  # stands where generated code expects a server
    credits_ = Credits(ledger, outbox, payments or ManualPayments(), lambda: Moment(now_us(), new_id, low_balance))
    add_MeteringServiceServicer_to_server(MeteringServicer(ledger, now_us, new_id, low_balance), registry)
    add_LedgerServiceServicer_to_server(LedgerServicer(ledger, reports, credits_, now_us), registry)
    add_UsageServiceServicer_to_server(UsageServicer(reports, now_us), registry)
    return table


def _forget(row_ids: Sequence[int], transaction: LedgerTransaction) -> None:
    transaction.forget_balance_events(row_ids)


async def sweep(ledger: LedgerStore, interval_s: float, low_balance: tuple[int, ...]) -> None:
    """Ends expired promotions, forgets old answers and announces low balances, for ever."""

    def turn(transaction: LedgerTransaction) -> tuple[int, list[tuple[int, BalanceEvent]]]:
        found = granting.sweep(transaction, now_us(), new_id, low_balance) + answers.sweep(transaction, now_us())
        return found, low_balance_events.unannounced(transaction)

    while True:
        try:
            found, events = await ledger.commit(turn, footprint=Footprint())
        except StoreUnavailableError:
            found, events = 0, []  # the next turn sees them again
        if events:
            low_balance_events.announce([event for _, event in events])
            row_ids = [row_id for row_id, _ in events]
            with contextlib.suppress(StoreUnavailableError):  # announced twice is better than never
                await ledger.commit(functools.partial(_forget, row_ids), footprint=Footprint())
        if found == 0:
            await asyncio.sleep(interval_s)
