"""The composition root of metering: settings -> ledger -> use cases -> servicers.

Owns what is wired to what, and background work; refuses to hold logic.
"""

import asyncio
import time
from typing import Any

import structlog
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from mws.metering.v1.ledger_service_pb2_grpc import add_LedgerServiceServicer_to_server
from mws.metering.v1.metering_service_pb2_grpc import add_MeteringServiceServicer_to_server
from mws.metering.v1.usage_service_pb2_grpc import add_UsageServiceServicer_to_server

from services.metering import granting
from services.metering.adapters.auth_listener import AuthListener
from services.metering.adapters.sqlite_ledger import open_ledger
from services.metering.ledger_servicer import LedgerServicer
from services.metering.metering_servicer import MeteringServicer
from services.metering.migrations import UnknownSchemaError
from services.metering.outbox import Outbox
from services.metering.ports import LedgerStore
from services.metering.settings import Settings
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
    path = settings.data_dir / "metering" / "ledger.sqlite3"
    async with Process(settings, CallerClass.METERING) as process:
        try:
            async with open_ledger(path, write_timeout_s=settings.store_timeout_s) as ledger:
                await _serve(process, settings, ledger)
        except (UnknownSchemaError, OSError) as error:
            _log.error("ledger.cannot_open", path=str(path), detail=str(error))
            raise ProcessFailedError(str(error)) from error


async def _serve(process: Process, settings: Settings, ledger: LedgerStore) -> None:
    auth = AuthListener(AdmissionServiceStub(process.connect("auth", settings.auth_endpoints)))
    outbox = Outbox(ledger, auth)
    background = [
        process.spawn(outbox.run(), name="outbox"),
        process.spawn(sweep_promotions(ledger, settings.sweep_interval_s), name="promotions"),
    ]
    try:
        await process.serve(method_table(ledger, outbox), resolve_caller=auth.team_of)
    finally:
        for task in background:  # both use the ledger, which is closed next
            task.cancel()
        await asyncio.wait(background)


def method_table(ledger: LedgerStore, outbox: Outbox) -> MethodTable:
    """Everything that metering serves."""
    table = MethodTable()
    registry: Any = table  # stands where generated code expects a server
    add_MeteringServiceServicer_to_server(MeteringServicer(ledger, now_us, new_id), registry)
    add_LedgerServiceServicer_to_server(LedgerServicer(ledger, outbox, now_us, new_id), registry)
    add_UsageServiceServicer_to_server(UsageServicer(ledger, now_us), registry)
    return table


async def sweep_promotions(ledger: LedgerStore, interval_s: float) -> None:
    """Ends expired promotions, for ever."""
    while True:
        try:
            found = await ledger.commit(lambda transaction: granting.sweep(transaction, now_us(), new_id))
        except StoreUnavailableError:
            found = 0  # the next turn sees them again
        if found == 0:
            await asyncio.sleep(interval_s)
