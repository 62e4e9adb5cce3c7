"""Inference in one loop with scripted neighbours: an admission, a metering and upstreams that do as the test says.

Owns the fakes and their wiring; the service itself is the real one, reached over the in-process transport.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.admission.v1.admission_service_pb2_grpc import (
    AdmissionServiceServicer,
    AdmissionServiceStub,
    add_AdmissionServiceServicer_to_server,
)
from mws.common.v1.credential_pb2 import Credential
from mws.common.v1.limits_pb2 import BucketSnapshot, LimitsSnapshot
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as service_pb
from mws.inference.v1.catalog_service_pb2_grpc import CatalogServiceStub
from mws.inference.v1.generation_pb2 import GenerationEvent
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from mws.inference.v1.routing_service_pb2_grpc import RoutingServiceStub
from mws.metering.v1 import metering_service_pb2 as metering_pb
from mws.metering.v1.metering_service_pb2_grpc import (
    MeteringServiceServicer,
    MeteringServiceStub,
    add_MeteringServiceServicer_to_server,
)

from services.link.in_process import InProcessChannel
from services.routing_and_inference.adapters.spool import Spool
from services.routing_and_inference.app import Outside, Service, wire
from services.routing_and_inference.catalog import Capabilities, Catalogue, Kind, Price, Profile, UpstreamTarget
from services.routing_and_inference.ports import (
    Dialects,
    EmbeddingRequest,
    EmbeddingResult,
    RankedDocument,
    RerankRequest,
    RerankResult,
    UpstreamRequest,
)
from services.runtime.calls import Caller, CallerClass, MethodTable
from services.runtime.errors import (
    CallAlreadyAdmittedError,
    GatewayError,
    InvalidCredentialError,
    NotFoundError,
    StoreUnavailableError,
    register_detail,
)
from services.runtime.guard import ServiceGuard
from services.runtime.ids import new_id
from services.runtime.logging import configure_logging

register_detail(pb.GenerationFailure)

LIMITS = LimitsSnapshot(
    requests=BucketSnapshot(limit=100, remaining=99), tokens=BucketSnapshot(limit=10_000, remaining=9_000)
)
ACCOUNT = "0192aaaa-0000-7000-8000-000000000001"
KEY = Credential(api_key_sha256=hashlib.sha256(b"a key").digest())
EDGE = Caller(CallerClass.EDGE, "edge-0")
CHARGED = 4_711

Behaviour = Callable[[UpstreamRequest], AsyncIterator[Sequence[GenerationEvent]]]


class FakeAdmission(AdmissionServiceServicer):
    """Admits everybody unless told otherwise, and remembers what it heard."""

    def __init__(self) -> None:
        self.asked: list[admission_pb.AdmitRequest] = []
        self.holds: dict[str, admission_pb.Hold] = {}
        self.extended: list[int] = []
        self.finished: dict[str, admission_pb.FinishedHold] = {}
        self.voided: list[str] = []
        self.renewed: list[admission_pb.Hold] = []
        self.gone: list[str] = []
        self.awaited: list[str] = []
        self.earlier: list[admission_pb.AdmitResponse] = []  # answers that come before an ordinary one
        self.refusal: admission_pb.Refusal | None = None
        self.error: GatewayError | None = None
        self.extensions_left = 1_000
        self.changed = asyncio.Condition()

    async def Admit(self, request: admission_pb.AdmitRequest, context: Any) -> admission_pb.AdmitResponse:
        if self.error is not None:
            raise self.error
        self.asked.append(request)
        if self.earlier:
            return self.earlier.pop(0)
        if self.refusal is not None:
            return admission_pb.AdmitResponse(refused=self.refusal, limits=LIMITS, account_id=ACCOUNT)
        known = self.holds.get(request.call_id)
        if known is not None and known.run_id != request.run_id:
            raise CallAlreadyAdmittedError("the call id belongs to another run")
        hold = admission_pb.Hold(
            call_id=request.call_id,
            run_id=request.run_id,
            runner=request.runner,
            account_id=ACCOUNT,
            key_id="key-1",
            state=admission_pb.HOLD_STATE_OPEN,
            amount_nano_usd=request.amount_nano_usd,
            rate_tokens=request.rate_tokens,
            price_book_version=request.price_book_version,
        )
        self.holds[request.call_id] = hold
        return admission_pb.AdmitResponse(admitted=hold, limits=LIMITS, account_id=ACCOUNT, key_id="key-1")

    async def Extend(self, request: admission_pb.ExtendRequest, context: Any) -> admission_pb.ExtendResponse:
        if self.error is not None:
            raise self.error
        if self.extensions_left == 0:
            return admission_pb.ExtendResponse(
                refused=admission_pb.Refusal(reason=admission_pb.Refusal.REASON_CREDIT, available_nano_usd=0)
            )
        self.extensions_left -= 1
        self.extended.append(request.amount_nano_usd)
        self.holds[request.call_id].amount_nano_usd = request.amount_nano_usd
        return admission_pb.ExtendResponse(extended=self.holds[request.call_id])

    async def Renew(self, request: admission_pb.RenewRequest, context: Any) -> admission_pb.RenewResponse:
        self.renewed = list(request.holds)
        return admission_pb.RenewResponse(gone_call_ids=self.gone)

    async def Finish(self, request: admission_pb.FinishRequest, context: Any) -> admission_pb.FinishResponse:
        async with self.changed:
            self.finished |= {hold.call_id: hold for hold in request.holds}
            self.changed.notify_all()
        return admission_pb.FinishResponse()

    async def Void(self, request: admission_pb.VoidRequest, context: Any) -> admission_pb.VoidResponse:
        async with self.changed:
            self.voided.append(request.call_id)
            self.changed.notify_all()
        return admission_pb.VoidResponse()

    async def BalanceChanged(
        self, request: admission_pb.BalanceChangedRequest, context: Any
    ) -> admission_pb.BalanceChangedResponse:
        raise NotImplementedError

    async def AwaitOutcome(
        self, request: admission_pb.AwaitOutcomeRequest, context: Any
    ) -> admission_pb.AwaitOutcomeResponse:
        self.awaited.append(request.call_id)
        return admission_pb.AwaitOutcomeResponse()

    async def GetLimits(self, request: admission_pb.GetLimitsRequest, context: Any) -> admission_pb.GetLimitsResponse:
        if request.credential != KEY:
            raise InvalidCredentialError("the credential is not valid")
        return admission_pb.GetLimitsResponse(account_id=ACCOUNT, limits=LIMITS)


class FakeMetering(MeteringServiceServicer):
    """Posts every event once, at one price; can be down, and can forget its price books."""

    def __init__(self) -> None:
        self.books: set[str] = set()
        self.posted: dict[str, metering_pb.UsageEvent] = {}
        self.received = 0
        self.batches: list[int] = []
        self.is_down = False
        self.refuses_books = False
        self.forgets_outcomes = False
        self.gate: asyncio.Event | None = None  # holds answers back until it is set
        self.changed = asyncio.Condition()

    async def RecordUsage(
        self, request: metering_pb.RecordUsageRequest, context: Any
    ) -> metering_pb.RecordUsageResponse:
        if self.gate is not None:
            await self.gate.wait()
        if self.is_down:
            raise StoreUnavailableError("down")
        self.batches.append(len(request.events))
        response = metering_pb.RecordUsageResponse()
        async with self.changed:
            for event in request.events:
                self._post(event, response.outcomes.add(call_id=event.call_id))
            self.changed.notify_all()
        if self.forgets_outcomes:
            del response.outcomes[:]
        return response

    def _post(self, event: metering_pb.UsageEvent, outcome: metering_pb.RecordOutcome) -> None:
        self.received += 1
        if event.price_book_version not in self.books:
            outcome.kind = metering_pb.RecordOutcome.KIND_DEFERRED
            return
        outcome.kind = metering_pb.RecordOutcome.KIND_POSTED
        outcome.charged_nano_usd = CHARGED
        outcome.repeated = event.call_id in self.posted
        self.posted.setdefault(event.call_id, event)

    async def ResolveOutcomes(
        self, request: metering_pb.ResolveOutcomesRequest, context: Any
    ) -> metering_pb.ResolveOutcomesResponse:
        raise NotImplementedError

    async def ReadBalances(
        self, request: metering_pb.ReadBalancesRequest, context: Any
    ) -> metering_pb.ReadBalancesResponse:
        raise NotImplementedError

    async def GetKeptAnswer(
        self, request: metering_pb.GetKeptAnswerRequest, context: Any
    ) -> metering_pb.GetKeptAnswerResponse:
        if self.is_down:
            raise StoreUnavailableError("down")
        for event in self.posted.values():
            if event.answer.idempotency_key == request.idempotency_key and event.account_id == request.account_id:
                return metering_pb.GetKeptAnswerResponse(call_id=event.call_id, answer=event.answer)
        raise NotFoundError("nothing is kept under this key")

    async def RegisterPriceBook(
        self, request: metering_pb.RegisterPriceBookRequest, context: Any
    ) -> metering_pb.RegisterPriceBookResponse:
        if self.is_down or self.refuses_books:
            raise StoreUnavailableError("down")
        self.books.add(request.version)
        return metering_pb.RegisterPriceBookResponse()


class ScriptedUpstream:
    """Plays one behaviour after the other, then the last one for ever."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.requests: list[UpstreamRequest] = []
        self.closed = 0  # iterators that have ended, in whatever way
        self.changed = asyncio.Condition()

    async def generate(self, request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        behaviour = self.behaviours[min(len(self.requests), len(self.behaviours) - 1)]
        self.requests.append(request)
        try:
            async for batch in behaviour(request):
                yield batch
        finally:
            self.closed += 1


class ScriptedVectors:
    """Embeds and ranks."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.embedded: list[EmbeddingRequest] = []
        self.ranked: list[RerankRequest] = []

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        self.embedded.append(request)
        if self.failures:
            raise self.failures.pop(0)
        return EmbeddingResult([b"\0\0\x80\x3f"] * max(len(request.texts), len(request.token_ids)), 7)

    async def rerank(self, request: RerankRequest) -> RerankResult:
        self.ranked.append(request)
        if self.failures:
            raise self.failures.pop(0)
        order = range(len(request.documents))
        return RerankResult([RankedDocument(i, 1 / (i + 1)) for i in order][: request.top_n], 9, None)


def started(request: UpstreamRequest, **usage: int) -> GenerationEvent:
    """`message_started`."""
    return GenerationEvent(
        message_started=pb.MessageStarted(
            upstream=request.target.name, attempt=request.attempt, usage=TokenUsage(**usage) if usage else None
        )
    )


def text(content: str) -> GenerationEvent:
    """`text_delta`."""
    return GenerationEvent(text_delta=pb.TextDelta(text=content))


def finished(reason: "pb.FinishReason.ValueType" = pb.FINISH_REASON_STOP, **usage: int) -> GenerationEvent:
    """`finished`."""
    return GenerationEvent(finished=pb.Finished(reason=reason, usage=TokenUsage(**usage) if usage else None))


def answers(*batches: Sequence[GenerationEvent], **usage: int) -> Behaviour:
    """Says these batches between a start and an end with this usage."""

    async def behave(request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        yield [started(request)]
        for batch in batches:
            yield batch
        yield [finished(pb.FINISH_REASON_STOP, **usage)]

    return behave


def raises(error: Exception, *batches: Sequence[GenerationEvent]) -> Behaviour:
    """Says these batches (after a start, if there are any) and fails."""

    async def behave(request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        if batches:
            yield [started(request, input_tokens=11, output_tokens=1)]
        for batch in batches:
            yield batch
        raise error

    return behave


def hangs(*batches: Sequence[GenerationEvent]) -> Behaviour:
    """Says these batches after a start, and then nothing for ever."""

    async def behave(request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        yield [started(request, input_tokens=11, output_tokens=1)]
        for batch in batches:
            yield batch
        await asyncio.Event().wait()

    return behave


def small_catalogue() -> Catalogue:
    """`plain` (two upstreams), `single` (one), `seer` (with vision), `vectors`, `ranks`."""
    price = Price(input_nano_usd=10, output_nano_usd=100)
    two = (UpstreamTarget("first", "scripted", priority=0), UpstreamTarget("second", "scripted", priority=1))
    size: dict[str, Any] = {"context_tokens": 20_000, "max_output_tokens": 8_000}
    one = (UpstreamTarget("only", "scripted"),)
    return Catalogue(
        [
            Profile("plain", Kind.GENERATION, price, two, **size),
            Profile("single", Kind.GENERATION, price, one, **size),
            Profile("seer", Kind.GENERATION, price, one, capabilities=Capabilities(vision=True), **size),
            Profile("vectors", Kind.EMBEDDING, Price(input_nano_usd=2), two, context_tokens=512),
            Profile("ranks", Kind.RERANK, Price(search_unit_nano_usd=1_000), one),
        ],
        defaults={Kind.GENERATION: "plain", Kind.EMBEDDING: "vectors", Kind.RERANK: "ranks"},
        aliases={"claude-*": "plain"},
    )


def a_request(model: str = "plain", *, stream: bool = True, **fields: Any) -> service_pb.GenerateRequest:
    """A call with one short question (12 characters)."""
    generation = pb.Generation(
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentBlock(text=pb.TextBlock(text="Hello there!"))])],
        max_output_tokens=1_000,
        stream=stream,
    )
    request = service_pb.GenerateRequest(call_id=new_id(), credential=KEY, model=model, generation=generation)
    request.MergeFrom(service_pb.GenerateRequest(**fields))
    return request


@dataclass
class World:
    """Everything a test touches."""

    admission: FakeAdmission
    metering: FakeMetering
    upstream: ScriptedUpstream
    vectors: ScriptedVectors
    service: Service
    spool: Spool
    guard: ServiceGuard
    inference: Any = None
    catalog: Any = None
    routing: Any = None
    links: list[InProcessChannel] = field(default_factory=list)

    def connect(self, caller: Caller) -> Any:
        """A stub of InferenceService for a caller."""
        channel = InProcessChannel(self.service.table, self.guard, caller)
        self.links.append(channel)
        return InferenceServiceStub(as_channel(channel))

    async def generate(self, request: service_pb.GenerateRequest) -> list[GenerationEvent]:
        """All events of a call."""
        events = []
        async for response in self.inference.Generate(request, timeout=10.0):
            events += response.events
        return events

    def event_of(self, request: Any) -> metering_pb.UsageEvent:
        """What metering posted for a call."""
        return self.metering.posted[request.call_id]


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Lets the loop run until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0)


def as_channel(channel: InProcessChannel) -> grpc.aio.Channel:
    """What generated stubs are typed to take."""
    return cast("grpc.aio.Channel", channel)


def channel_to(add: Callable[[Any, Any], None], servicer: object, caller: Caller) -> InProcessChannel:
    """An in-process channel to one servicer."""
    table = MethodTable()
    add(servicer, table)
    return InProcessChannel(table, ServiceGuard(table, configure_logging(process="test", level="error")), caller)


@asynccontextmanager
async def a_world(directory: Path, *behaviours: Behaviour, catalogue: Catalogue | None = None) -> AsyncIterator[World]:
    """Starts everything; ends when every background task has."""
    log = configure_logging(process="test", level="error")
    admission, metering = FakeAdmission(), FakeMetering()
    upstream, vectors = ScriptedUpstream(*(behaviours or (answers([text("Hi")]),))), ScriptedVectors()
    runner = Caller(CallerClass.INFERENCE, "inference-0")
    to_admission = channel_to(add_AdmissionServiceServicer_to_server, admission, runner)
    to_metering = channel_to(add_MeteringServiceServicer_to_server, metering, runner)
    spool = Spool.open(directory / "spool", "inference-0", max_bytes=8 * 1024 * 1024)
    dialects = Dialects({"scripted": upstream}, {"scripted": vectors}, {"scripted": vectors})
    outside = Outside(
        AdmissionServiceStub(as_channel(to_admission)), MeteringServiceStub(as_channel(to_metering)), spool, dialects
    )
    service = wire(catalogue or small_catalogue(), outside, runner="inference-0/boot")
    guard = ServiceGuard(service.table, log)
    world = World(admission, metering, upstream, vectors, service, spool, guard)
    world.inference = world.connect(EDGE)
    admin = InProcessChannel(service.table, guard, Caller(CallerClass.ADMIN, "admin"))
    world.catalog, world.routing = CatalogServiceStub(as_channel(admin)), RoutingServiceStub(as_channel(admin))
    world.links += [admin, to_admission, to_metering]
    await service.prices.register()
    background: list[Callable[[], Coroutine[Any, Any, None]]] = [
        service.recorder.run,
        service.recorder.resend,
        service.finisher.run,
        service.leases.run,
    ]
    tasks = [asyncio.create_task(work()) for work in background]
    try:
        yield world
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for link in world.links:
            await link.close()
        spool.close()
    for task in tasks:
        assert task.cancelled(), task
