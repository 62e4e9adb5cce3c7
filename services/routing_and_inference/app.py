"""The composition root of inference: settings -> catalogue, adapters -> use cases -> servicers.

Owns what is wired to what, and background work; refuses to hold logic.
"""

import asyncio
import hashlib
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from mws.common.v1.credential_pb2 import Credential
from mws.inference.v1.catalog_service_pb2_grpc import add_CatalogServiceServicer_to_server
from mws.inference.v1.forward_service_pb2_grpc import add_ForwardServiceServicer_to_server
from mws.inference.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from mws.inference.v1.routing_service_pb2_grpc import add_RoutingServiceServicer_to_server
from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceStub

from services.routing_and_inference import catalog_file
from services.routing_and_inference.adapters.finisher import Finisher
from services.routing_and_inference.adapters.leases import Leases
from services.routing_and_inference.adapters.prices import PriceRegistration
from services.routing_and_inference.adapters.recorder import UsageRecorder
from services.routing_and_inference.adapters.spool import Spool, SpoolFullError
from services.routing_and_inference.admission import Admissions
from services.routing_and_inference.catalog import Catalogue, Kind, UpstreamTarget
from services.routing_and_inference.current import CatalogueWatch, CurrentCatalogue, Stamp, profiles_of
from services.routing_and_inference.fleet import Fleet
from services.routing_and_inference.forward_servicer import ForwardServicer
from services.routing_and_inference.forwarding import Forwarder
from services.routing_and_inference.generation import Generator
from services.routing_and_inference.keyed_calls import KeyedCalls
from services.routing_and_inference.keyed_forwards import KeyedForwards
from services.routing_and_inference.ports import Dialects
from services.routing_and_inference.price_book import price_book_of
from services.routing_and_inference.replaying import KeptAnswers
from services.routing_and_inference.servicer import CatalogServicer, InferenceServicer, RoutingServicer
from services.routing_and_inference.settings import Settings, secret_of
from services.routing_and_inference.settlement import Settlement
from services.routing_and_inference.unary_calls import UnaryCalls
from services.routing_and_inference.upstreams import open_dialects
from services.runtime.calls import Caller, CallerClass, MethodTable
from services.runtime.errors import GatewayError
from services.runtime.process import Process, ProcessFailedError

if TYPE_CHECKING:  # these names exist in the stub files alone
    from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceAsyncStub
    from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub

log = structlog.get_logger()

_API_KEY_PREFIX = "mws_live_"
_IDENTIFY_TIMEOUT_S = 2.0
_FLUSH_FINISHES_S = 3.0
_ASK_EVERY_S = 0.2
_BUSY_CALLS = 8  # so many at once, and ends are worth gathering

_AUTH_ANSWERS = "auth-and-limits answers"
_PRICES_KNOWN = "metering knows the prices"
_USAGE_RECORDABLE = "usage can be recorded"


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that runs, wired."""

    table: MethodTable
    recorder: UsageRecorder
    finisher: Finisher
    leases: Leases
    prices: PriceRegistration
    fleet: Fleet
    current: CurrentCatalogue
    outlive_callers: tuple[Callable[[], Awaitable[None]], ...]  # each waits for the calls that do

    async def adopt(self, catalogue: Catalogue) -> None:
        """Puts a catalogue into force, as soon as metering knows its prices."""
        self.prices.add(price_book_of(profiles_of(catalogue)))
        await self.prices.register()
        self.fleet.replace(profiles_of(catalogue))
        self.current.replace(catalogue)


@dataclass(frozen=True, slots=True)
class Outside:
    """What the service talks to."""

    admission: "AdmissionServiceAsyncStub"
    metering: "MeteringServiceAsyncStub"
    spool: Spool
    dialects: Dialects


def wall_us() -> int:
    """Unix time in microseconds."""
    return time.time_ns() // 1_000


async def run(settings: Settings) -> None:
    """Serves inference until the process is asked to end."""
    async with Process(settings, CallerClass.INFERENCE) as process:
        with _opened_spool(settings) as spool:
            async with open_dialects(instant=settings.simulated_pace == "instant") as dialects:
                catalogue = _first_catalogue(settings, dialects)
                outside = Outside(
                    AdmissionServiceStub(process.connect("auth", settings.auth_endpoints)),
                    MeteringServiceStub(process.connect("metering", settings.metering_endpoints)),
                    spool,
                    dialects,
                )
                service = wire(catalogue, outside, runner=f"{settings.name}/{uuid.uuid4()}")
                watch = CatalogueWatch(
                    lambda: _stamp_of(settings.catalogue), lambda: _read_catalogue(settings, dialects), service.adopt
                )
                process.spawn(watch.run(), name="catalogue watch")
                await _serve(process, service, outside)


def wire(catalogue: Catalogue, outside: Outside, *, runner: str) -> Service:
    """Builds everything that serves. `runner` names this run of this process."""
    current = CurrentCatalogue(catalogue)
    leases = Leases(outside.admission, runner)
    finisher = Finisher(outside.admission, is_busy=lambda: len(leases) >= _BUSY_CALLS)
    prices = PriceRegistration(outside.metering, current.book)
    recorder = UsageRecorder(outside.metering, outside.spool, leases, prices)
    admissions = Admissions(outside.admission, leases, finisher, runner=runner, current=current, wall_us=wall_us)
    settlement = Settlement(recorder, leases, finisher, wall_us=wall_us)
    fleet = Fleet(profiles_of(catalogue), now_s=time.monotonic, wall_us=wall_us, random=random.random)
    generator = Generator(current, outside.dialects.generation, fleet, admissions, settlement)
    answers = KeptAnswers(outside.metering)
    keyed_calls = KeyedCalls(current, generator, answers)
    unary_calls = UnaryCalls(current, outside.dialects, fleet, admissions, settlement, answers)
    forwarder = Forwarder(current, outside.dialects.native, fleet, admissions, settlement)
    keyed_forwards = KeyedForwards(current, forwarder, answers)
    table = MethodTable()
    registry: Any = table  # stands where generated code expects a server
    add_InferenceServiceServicer_to_server(InferenceServicer(current, generator, keyed_calls, unary_calls), registry)
    add_ForwardServiceServicer_to_server(ForwardServicer(forwarder, keyed_forwards), registry)
    add_CatalogServiceServicer_to_server(CatalogServicer(current), registry)
    add_RoutingServiceServicer_to_server(RoutingServicer(fleet), registry)
    finishes = (keyed_calls.finish, unary_calls.finish, keyed_forwards.finish)
    return Service(table, recorder, finisher, leases, prices, fleet, current, finishes)


async def _serve(process: Process, service: Service, outside: Outside) -> None:
    readiness = process.readiness
    for condition in (_AUTH_ANSWERS, _PRICES_KNOWN):
        readiness.set(condition, False)

    service.recorder.on_change = lambda: readiness.set(_USAGE_RECORDABLE, service.recorder.can_record())
    background = [
        process.spawn(service.recorder.run(), name="recorder"),
        process.spawn(service.recorder.resend(), name="spool"),
        process.spawn(service.recorder.adopt(), name="spool adoption"),
        process.spawn(service.finisher.run(), name="finisher"),
        process.spawn(service.leases.run(), name="leases"),
        process.spawn(_await_peers(process, service, outside), name="peers"),
    ]
    try:
        await process.serve(service.table, resolve_caller=TeamCallers(outside.admission).resolve)
        await _flush(service, process.settings.drain_s)
    finally:
        for task in background:  # they use the spool and the upstreams, which are closed next
            task.cancel()
        await asyncio.wait(background)


async def _await_peers(process: Process, service: Service, outside: Outside) -> None:
    """Ready means: somebody admits, and metering knows what a call costs. In whatever order they start."""
    await service.prices.register()
    process.readiness.set(_PRICES_KNOWN, True)
    while not await _auth_answers(outside):
        await asyncio.sleep(_ASK_EVERY_S)
    process.readiness.set(_AUTH_ANSWERS, True)


async def _auth_answers(outside: Outside) -> bool:
    try:
        await outside.admission.Renew(admission_pb.RenewRequest(runner="readiness"), timeout=_IDENTIFY_TIMEOUT_S)
    except GatewayError as error:
        return error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True


async def _flush(service: Service, timeout_s: float) -> None:
    """Gets everything acknowledged before the process ends. What stays in the spool is on disk, for the next one."""
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(finish() for finish in service.outlive_callers))
    except TimeoutError:
        log.warning("keyed_calls.left_behind")
    if not await service.recorder.flush(timeout_s):
        log.warning("spool.left_behind", events=service.recorder.unsent)
    if not await service.finisher.flush(_FLUSH_FINISHES_S):
        log.warning("holds.left_behind")


class TeamCallers:
    """Says whose credential a team's is, by asking auth-and-limits."""

    def __init__(self, admission: "AdmissionServiceAsyncStub") -> None:
        self._admission = admission

    async def resolve(self, token: str) -> Caller:
        """The team behind an API key or an OIDC token. Raises InvalidCredentialError."""
        credential = Credential()
        if token.startswith(_API_KEY_PREFIX):
            credential.api_key_sha256 = hashlib.sha256(token.encode()).digest()
        else:
            credential.access_token = token
        request = admission_pb.GetLimitsRequest(credential=credential)
        known = await self._admission.GetLimits(request, timeout=_IDENTIFY_TIMEOUT_S)
        return Caller(CallerClass.TEAM, known.key_id or known.account_id, known.account_id, credential.api_key_sha256)


def _first_catalogue(settings: Settings, dialects: Dialects) -> Catalogue:
    try:
        return _read_catalogue(settings, dialects)
    except catalog_file.CatalogError as error:
        raise ProcessFailedError(str(error)) from error


def _read_catalogue(settings: Settings, dialects: Dialects) -> Catalogue:
    """The catalogue as it is served. Raises CatalogError."""
    catalogue = catalog_file.load(settings.catalogue, secret_of)
    if settings.upstream_dialect is not None:
        catalogue = catalogue.served_by(
            UpstreamTarget(
                name="upstream",
                dialect=settings.upstream_dialect,
                base_url=(settings.upstream_url or "").rstrip("/"),
                model=settings.upstream_model,
                api_key=settings.upstream_api_key.get_secret_value(),
            )
        )
    _check_dialects(settings.catalogue, catalogue, dialects)
    return catalogue


def _check_dialects(file: Path, catalogue: Catalogue, dialects: Dialects) -> None:
    """A dialect that the schema knows and nobody speaks would fail at the first call, so the catalogue is refused."""
    spoken = {Kind.GENERATION: dialects.generation, Kind.EMBEDDING: dialects.embedding, Kind.RERANK: dialects.rerank}
    for profile in catalogue.profiles:
        for target in profile.upstreams:
            if target.dialect not in spoken[profile.kind]:
                rule = f"nothing here speaks the dialect {target.dialect!r}"
                raise catalog_file.CatalogError(file, [(profile.slug, rule)])


def _stamp_of(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _opened_spool(settings: Settings) -> Iterator[Spool]:
    try:
        spool = Spool.open(settings.data_dir / "spool", settings.name, max_bytes=settings.spool_max_bytes)
    except (OSError, SpoolFullError) as error:
        log.error("spool.cannot_open", cause=type(error).__name__)  # noqa: TRY400 - the cause says it
        raise ProcessFailedError("the spool cannot be opened") from error
    try:
        yield spool
    finally:
        spool.close()
