"""A whole edge over a real socket, with scripted services behind it in the same loop.

Owns that assembly; refuses to know what any test asserts, but for the headers that every answer must carry.
"""

import asyncio
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from typing import Any

import anthropic
import httpx2
import openai
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.admission.v1.admission_service_pb2_grpc import (
    AdmissionServiceServicer,
    add_AdmissionServiceServicer_to_server,
)
from mws.common.v1 import limits_pb2, token_usage_pb2
from mws.inference.v1 import catalog_service_pb2 as catalog_pb
from mws.inference.v1 import forward_service_pb2 as forward_pb
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as inference_pb
from mws.inference.v1.catalog_service_pb2_grpc import CatalogServiceServicer, add_CatalogServiceServicer_to_server
from mws.inference.v1.forward_service_pb2_grpc import ForwardServiceServicer, add_ForwardServiceServicer_to_server
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server
from prometheus_client import CollectorRegistry

from edge.app import HttpServer, all_routes, http_server
from edge.clients import Admission, Inference
from edge.company_proxy import PREFIX
from edge.company_proxy.documentation import Page
from edge.company_proxy.routes import CompanyProxy
from edge.company_proxy.rules import ProxyRules
from edge.documentation import documentation_app
from edge.front import Front
from edge.gate import Gate, GateRules
from edge.metrics import EdgeMetrics
from edge.pipeline import Pipeline, PipelineRules
from edge.relay import StreamTimes
from edge.routes.ops import ops_routes
from services.link.in_process import InProcessChannel
from services.runtime.calls import Call, Caller, CallerClass, MethodTable, call_of
from services.runtime.errors import GatewayError, InvalidCredentialError, NotFoundError
from services.runtime.guard import ServiceGuard
from services.runtime.logging import EventLog
from services.runtime.process import Readiness
from services.runtime.telemetry import Tracing, current_traceparent
from tests.rule_book import LIMIT_HEADERS, CheckedTransport

SIX = LIMIT_HEADERS
GOOD_KEY, BAD_KEY = "mws_live_good", "mws_live_bad"
BAD_DIGEST = hashlib.sha256(BAD_KEY.encode()).digest()
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # one for all clients: reading the certificates is slow
Script = Callable[[inference_pb.GenerateRequest, Call], AsyncIterator[list[pb.GenerationEvent]]]


def limits() -> limits_pb2.LimitsSnapshot:
    snapshot = limits_pb2.LimitsSnapshot()
    snapshot.requests.limit, snapshot.requests.remaining = 5000, 4999
    snapshot.requests.reset.FromMilliseconds(12)
    snapshot.tokens.limit, snapshot.tokens.remaining = 160000, 159972
    snapshot.tokens.reset.FromTimedelta(timedelta(seconds=72.5))
    return snapshot


def admitted(request: inference_pb.GenerateRequest, **members: Any) -> pb.GenerationEvent:
    return pb.GenerationEvent(
        admitted=pb.Admitted(
            call_id=request.call_id,
            account_id="acct",
            limits=limits(),
            profile="dragon",
            estimated_input_tokens=7,
            **members,
        )
    )


def started() -> pb.GenerationEvent:
    return pb.GenerationEvent(message_started=pb.MessageStarted(upstream="primary", attempt=1))


def text(value: str) -> pb.GenerationEvent:
    return pb.GenerationEvent(text_delta=pb.TextDelta(text=value))


def finished(reason: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP, **members: Any) -> pb.GenerationEvent:
    usage = token_usage_pb2.TokenUsage(input_tokens=11, output_tokens=5)
    return pb.GenerationEvent(finished=pb.Finished(reason=reason, usage=usage, **members))


async def hello(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
    yield [admitted(request)]
    yield [started(), text("Hel")]
    yield [text("lo")]
    yield [finished()]


class ScriptedInference(InferenceServiceServicer):
    """Answers what the test's script says; keeps what it was asked."""

    def __init__(self) -> None:
        self.script: Script = hello
        self.asked: list[inference_pb.GenerateRequest] = []
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    async def Generate(
        self, request: inference_pb.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        self.asked.append(request)
        if request.credential.api_key_sha256 == BAD_DIGEST:
            raise InvalidCredentialError("bad key")
        call = call_of(context)
        try:
            async for events in self.script(request, call):
                yield inference_pb.GenerateResponse(events=events)
        except asyncio.CancelledError:
            self.ended.put_nowait(str(call.cancel_reason))
            raise
        else:
            self.ended.put_nowait("finished")

    async def CountTokens(
        self, request: inference_pb.CountTokensRequest, context: Any
    ) -> inference_pb.CountTokensResponse:
        return inference_pb.CountTokensResponse(input_tokens=len(request.generation.messages) * 4)

    async def Embed(self, request: inference_pb.EmbedRequest, context: Any) -> inference_pb.EmbedResponse:
        vectors = [inference_pb.Embedding(vector_f32le=b"\x00\x00\x80\x3f\x00\x00\x00\x40") for _ in request.inputs]
        usage = token_usage_pb2.TokenUsage(input_tokens=3)
        return inference_pb.EmbedResponse(embeddings=vectors, usage=usage, limits=limits(), profile="embed")

    async def Rerank(self, request: inference_pb.RerankRequest, context: Any) -> inference_pb.RerankResponse:
        results = [
            inference_pb.RankedDocument(index=at, relevance_score=1.0 / (at + 1))
            for at in range(len(request.documents))
        ][: request.top_n if request.HasField("top_n") else None]
        usage = token_usage_pb2.TokenUsage(search_units=1)
        return inference_pb.RerankResponse(results=results, usage=usage, limits=limits(), profile="rerank")


class ScriptedForwarding(ForwardServiceServicer):
    """Forwards what the test's script says; keeps what it was asked."""

    def __init__(self) -> None:
        self.script: Callable[[forward_pb.ForwardRequest], AsyncIterator[list[pb.GenerationEvent]]] | None = None
        self.asked: list[forward_pb.ForwardRequest] = []
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    async def Forward(
        self, request: forward_pb.ForwardRequest, context: Any
    ) -> AsyncIterator[forward_pb.ForwardResponse]:
        self.asked.append(request)
        assert self.script is not None
        try:
            async for events in self.script(request):
                yield forward_pb.ForwardResponse(events=events)
        except asyncio.CancelledError:
            self.ended.put_nowait(str(call_of(context).cancel_reason))
            raise


class ScriptedCatalog(CatalogServiceServicer):
    """Two profiles and an alias."""

    profiles = (
        catalog_pb.Profile(slug="dragon", display_name="Dragon", context_tokens=262144, max_output_tokens=65536),
        catalog_pb.Profile(slug="dragon-nova", display_name="Big", context_tokens=262144, max_output_tokens=65536),
    )

    async def ListProfiles(
        self, request: catalog_pb.ListProfilesRequest, context: Any
    ) -> catalog_pb.ListProfilesResponse:
        return catalog_pb.ListProfilesResponse(profiles=self.profiles)

    async def GetProfile(self, request: catalog_pb.GetProfileRequest, context: Any) -> catalog_pb.GetProfileResponse:
        names = {"dragon": 0, "dragon-nova": 1, "claude-sonnet-4-6": 0}
        if request.model not in names:
            raise NotFoundError("no such profile")
        return catalog_pb.GetProfileResponse(profile=self.profiles[names[request.model]])


class ScriptedAdmission(AdmissionServiceServicer):
    """Knows every key but one."""

    def __init__(self) -> None:
        self.failure: GatewayError | None = None
        self.asked = 0

    async def GetLimits(self, request: admission_pb.GetLimitsRequest, context: Any) -> admission_pb.GetLimitsResponse:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        if request.credential.api_key_sha256 == BAD_DIGEST:
            raise InvalidCredentialError("bad key")
        return admission_pb.GetLimitsResponse(account_id="acct", key_id="key", limits=limits())


@dataclass
class RunningEdge:
    """An edge that listens, and the scripts behind it."""

    url: str
    inference: ScriptedInference
    forwarding: ScriptedForwarding
    admission: ScriptedAdmission
    pipeline: Pipeline
    server: HttpServer
    readiness: Readiness
    log: BytesIO
    flush_log: Callable[[], None]
    responses: list[httpx2.Response] = field(default_factory=list)

    def anthropic(self, key: str = GOOD_KEY, **options: Any) -> anthropic.AsyncAnthropic:
        options.setdefault("max_retries", 0)
        return anthropic.AsyncAnthropic(
            api_key=key, base_url=self.url, http_client=self._client("anthropic"), **options
        )

    def openai(self, key: str = GOOD_KEY, **options: Any) -> openai.AsyncOpenAI:
        options.setdefault("max_retries", 0)
        return openai.AsyncOpenAI(api_key=key, base_url=f"{self.url}/v1", http_client=self._client("openai"), **options)

    def _client(self, vendor: str) -> Any:
        options: Any = {"event_hooks": {"response": [self._note]}, "transport": _checked_transport()}
        if vendor == "anthropic":
            return anthropic.DefaultAsyncHttpxClient(**options)
        return openai.DefaultAsyncHttpxClient(**options)

    def http(self, key: str | None = GOOD_KEY) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        hooks: Any = {"response": [self._note]}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, event_hooks=hooks, transport=_checked_transport())

    async def _note(self, response: httpx2.Response) -> None:
        self.responses.append(response)


def _checked_transport() -> CheckedTransport:
    return CheckedTransport(httpx2.AsyncHTTPTransport(verify=_NO_TLS))


def _trace() -> str:
    return current_traceparent() or ""


_NO_RULES = ProxyRules()


@dataclass(frozen=True)
class EdgeOptions:
    """What a test may change."""

    commit_after_s: float = 10.0
    ping_every_s: float = 10.0
    body_limit_bytes: int = 1 << 20
    strangers_per_minute: int = 120
    proxy_rules: ProxyRules = _NO_RULES


async def run_edge(options: EdgeOptions) -> tuple[RunningEdge, Callable[[], Awaitable[None]]]:
    inference, admission, table = ScriptedInference(), ScriptedAdmission(), MethodTable()  # type: ignore[abstract]
    forwarding = ScriptedForwarding()
    add_ForwardServiceServicer_to_server(forwarding, table)  # type: ignore[arg-type]
    add_InferenceServiceServicer_to_server(inference, table)  # type: ignore[arg-type]
    add_CatalogServiceServicer_to_server(ScriptedCatalog(), table)  # type: ignore[arg-type]
    add_AdmissionServiceServicer_to_server(admission, table)  # type: ignore[arg-type]
    stream = BytesIO()
    log = EventLog(stream)
    channel: Any = InProcessChannel(
        table, ServiceGuard(table, log), Caller(CallerClass.EDGE, "edge-0"), trace_context=_trace
    )
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    metrics, readiness, registry = EdgeMetrics(), Readiness(), CollectorRegistry()
    registry.register(metrics)
    pipeline = Pipeline(
        PipelineRules(options.body_limit_bytes, StreamTimes(options.commit_after_s, options.ping_every_s)),
        Gate(GateRules(options.strangers_per_minute, 3.0, 600.0, ()), asyncio.get_running_loop().time),
        Admission(channel),
        Inference(channel, generate_timeout_s=60, catalog_ttl_s=5),
        spawn=spawn,
        metrics=metrics,
    )
    routes = {**all_routes(pipeline), **ops_routes(readiness, lambda: False, registry)}
    prefixes = {PREFIX: CompanyProxy(pipeline, options.proxy_rules, Page("https://assets.example"))}
    server = http_server(Front(routes, documentation_app(), log, metrics, Tracing(), prefixes=prefixes), 5)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def stop() -> None:
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        server.should_exit = True
        await serving
        await channel.close()
        assert not tasks, f"left behind: {tasks}"
        assert len(pipeline.relays) == 0

    return RunningEdge(url, inference, forwarding, admission, pipeline, server, readiness, stream, log.flush), stop
