"""The composition root of auth-and-limits: settings -> stores -> use cases -> servicers.

Owns what is wired to what, and background work; refuses to hold logic.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from mws.admission.v1.account_service_pb2_grpc import add_AccountServiceServicer_to_server
from mws.admission.v1.admission_service_pb2_grpc import add_AdmissionServiceServicer_to_server
from mws.admission.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from mws.admission.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from mws.admission.v1.plan_service_pb2_grpc import add_PlanServiceServicer_to_server

from services.auth_and_limits.account_servicer import AccountServicer, AuditServicer
from services.auth_and_limits.account_stores import open_accounts
from services.auth_and_limits.accounts import Accounts
from services.auth_and_limits.adapters.embedded_holds import unix_ms
from services.auth_and_limits.adapters.journal_file import JournalError
from services.auth_and_limits.adapters.jwks import keys_at_url, keys_in_file
from services.auth_and_limits.adapters.metering_outcomes import MeteringOutcomes
from services.auth_and_limits.adapters.sql_migrations import AccountSchemaError
from services.auth_and_limits.admission import Admission, TeamCallers
from services.auth_and_limits.admission_servicer import AdmissionServicer
from services.auth_and_limits.directory import Directory
from services.auth_and_limits.hold_stores import open_holds
from services.auth_and_limits.identity import OidcTokens, SignedTokens, TrustedIssuer
from services.auth_and_limits.key_servicer import KeyServicer
from services.auth_and_limits.keys import Keys
from services.auth_and_limits.metrics import OPEN_HOLDS
from services.auth_and_limits.oidc_staff import StaffFileError, StaffPayers, read_staff_issuers, staff_tokens
from services.auth_and_limits.pages import PageTokens
from services.auth_and_limits.plan_servicer import PlanServicer
from services.auth_and_limits.plans import PlanFileError, load_plans
from services.auth_and_limits.ports import BalanceSource, ChangeFeed, HoldStore
from services.auth_and_limits.reaper import Reaper
from services.auth_and_limits.settings import IssuerSettings, Settings
from services.auth_and_limits.tiers import PlanBook
from services.auth_and_limits.trail import Trail
from services.runtime.calls import CallerClass, MethodTable
from services.runtime.errors import StoreUnavailableError
from services.runtime.ids import new_id
from services.runtime.process import Process, ProcessFailedError

_HEALTH_S = 0.5
_FORGET_S = 30.0
_USES_S = 30.0
_HOLDS_ARE_KEPT = "hold store"
_ACCOUNTS_WERE_READ = "accounts"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Service:
    """The running parts that a process, or a test, needs to reach."""

    holds: HoldStore
    directory: Directory
    feed: ChangeFeed
    table: MethodTable
    teams: TeamCallers
    tokens: tuple[SignedTokens, ...]


@asynccontextmanager
async def open_service(settings: Settings, balances: BalanceSource | None = None) -> AsyncIterator[Service]:
    """Opens the stores and wires everything on them. With `balances`, a hold store that lost them asks for them."""
    plans = load_plans(settings.plans)
    pepper = settings.key_pepper
    async with AsyncExitStack() as stack:
        store, feed = await stack.enter_async_context(open_accounts(settings))
        holds = await stack.enter_async_context(open_holds(settings, plans, store, balances))
        tokens = OidcTokens([_trusted(issuer) for issuer in settings.issuers], time.monotonic, _unix_s)
        directory = Directory(store, tokens, feed, pepper=pepper, now_unix_ms=unix_ms)
        trail = Trail(new_id, unix_ms)
        accounts = Accounts(store, directory, holds, plans=plans, trail=trail)
        keys = Keys(store, directory, holds, plans=plans, trail=trail)
        realms = read_staff_issuers(settings.catalogue)
        staff = StaffPayers(realms, staff_tokens(realms, keys_at_url, time.monotonic, _unix_s), store, directory)
        table = _method_table(Admission(directory, holds, staff), accounts, keys, plans, PageTokens(pepper))
        yield Service(holds, directory, feed, table, TeamCallers(directory), (tokens.tokens, staff.tokens))


async def run(settings: Settings) -> None:
    """Serves auth-and-limits until the process is asked to end."""
    async with Process(settings, CallerClass.AUTH) as process:
        metering = MeteringOutcomes(process.connect("metering", settings.metering_endpoints))
        try:
            async with open_service(settings, metering) as service:
                await _serve(process, metering, service)
        except (AccountSchemaError, JournalError, PlanFileError, StaffFileError, OSError) as error:
            _log.error("process.cannot_start", why=str(error))
            raise ProcessFailedError(str(error)) from error


async def _serve(process: Process, metering: MeteringOutcomes, service: Service) -> None:
    background = [
        process.spawn(Reaper(service.holds, metering).run(), name="reaper"),
        process.spawn(_watch(process, service), name="health"),
        process.spawn(_write_uses(service.directory), name="key uses"),
        process.spawn(_forget(service.holds), name="forget"),
        *(process.spawn(tokens.keep_fresh(), name="issuer keys") for tokens in service.tokens),
    ]
    try:
        # Asked every time: it answers from memory, and a revoked key must not make itself a successor.
        await process.serve(service.table, resolve_caller=service.teams.resolve, keep_callers_s=0.0)
    finally:
        for task in background:  # they use the stores, which are closed next
            task.cancel()
        await asyncio.wait(background)
        with contextlib.suppress(StoreUnavailableError):
            await service.directory.write_uses()


async def _watch(process: Process, service: Service) -> None:
    """Keeps the gauge and the readiness true."""
    were_accounts_read = False
    while True:
        OPEN_HOLDS.set(service.holds.open_holds)
        process.readiness.set(_HOLDS_ARE_KEPT, service.holds.is_healthy)
        # Once is enough: known keys go on without it, and replicas must not leave their service all together.
        were_accounts_read = were_accounts_read or service.feed.is_healthy
        process.readiness.set(_ACCOUNTS_WERE_READ, were_accounts_read)
        await asyncio.sleep(_HEALTH_S)


async def _write_uses(directory: Directory) -> None:
    """Writes down when keys were last used, now and then."""
    while True:
        await asyncio.sleep(_USES_S)
        with contextlib.suppress(StoreUnavailableError):  # they are kept, and written the next time
            await directory.write_uses()


async def _forget(holds: HoldStore) -> None:
    """Drops what nobody may ask for any more, now and then."""
    while True:
        await asyncio.sleep(_FORGET_S)
        await holds.forget_old()


def _method_table(
    admission: Admission, accounts: Accounts, keys: Keys, plans: PlanBook, tokens: PageTokens
) -> MethodTable:
    table = MethodTable()
    registry: Any = table  # stands where generated code expects a server
    add_AdmissionServiceServicer_to_server(AdmissionServicer(admission, unix_ms), registry)
    add_AccountServiceServicer_to_server(AccountServicer(accounts, tokens), registry)
    add_KeyServiceServicer_to_server(KeyServicer(keys, tokens, os.urandom), registry)
    add_AuditServiceServicer_to_server(AuditServicer(accounts, tokens), registry)
    add_PlanServiceServicer_to_server(PlanServicer(plans, tokens), registry)
    return table


def _trusted(issuer: IssuerSettings) -> TrustedIssuer:
    source = keys_in_file(issuer.jwks_file) if issuer.jwks_file else keys_at_url(issuer.jwks_url)
    return TrustedIssuer(issuer.issuer, issuer.audience, source)


def _unix_s() -> int:
    return int(time.time())
