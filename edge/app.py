"""Composition root of the edge: settings to clients, pipeline, routes and the HTTP server, and the order of its drain.

Owns the wiring; refuses to hold any logic of a request.
"""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Coroutine, Iterator
from typing import Any

import structlog
import uvicorn
from prometheus_client import REGISTRY

from edge.clients import Admission, Inference
from edge.company_proxy import PREFIX
from edge.company_proxy.documentation import Page
from edge.company_proxy.routes import CompanyProxy
from edge.company_proxy.rules import ProxyFileError, read_rules
from edge.connection import Connection
from edge.documentation import documentation_app
from edge.front import Front, Route
from edge.gate import Gate, GateRules, stand_ins
from edge.metrics import EdgeMetrics
from edge.pipeline import Pipeline, PipelineRules
from edge.relay import StreamTimes
from edge.routes.chat_completions import chat_routes
from edge.routes.embeddings import embedding_routes
from edge.routes.messages import message_routes
from edge.routes.models import model_routes
from edge.routes.ops import ops_routes
from edge.routes.rerank import rerank_routes
from edge.settings import Settings
from services.runtime.calls import CallerClass
from services.runtime.errors import GatewayError
from services.runtime.process import Process, ProcessFailedError

_log = structlog.get_logger()
_BAD_KEY_S = 3.0
_GOOD_KEY_S = 600.0
_LAST_WORDS_S = 2.0  # for error events after the drain's deadline, before connections are closed
_FIRST_CONTACT_S = 0.5
_GC_THRESHOLD = 10_000  # a request makes few cycles; the default looks for them every few requests


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: the process decides when to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: Any, drain_s: float) -> HttpServer:
    """uvicorn, set up for raw ASGI."""
    return HttpServer(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,  # longer than the idle timeout of usual proxies, so that they close first
            timeout_graceful_shutdown=int(drain_s + _LAST_WORDS_S) + 1,
            backlog=4096,
        )
    )


def build_pipeline(settings: Settings, process: Process, metrics: EdgeMetrics) -> Pipeline:
    """The pipeline on channels to the other processes."""
    admission = Admission(process.connect("auth", settings.auth_endpoints))
    inference = Inference(
        process.connect("inference", settings.inference_endpoints),
        generate_timeout_s=settings.generate_timeout_s,
        catalog_ttl_s=settings.catalog_ttl_s,
    )
    test_keys = {text: key.get_secret_value() for text, key in settings.test_keys.items()}
    if test_keys:
        _log.warning("test_keys.accepted", count=len(test_keys))
    gate = Gate(
        GateRules(
            settings.strangers_per_minute,
            _BAD_KEY_S,
            _GOOD_KEY_S,
            settings.trusted_proxies,
            stand_ins=stand_ins(test_keys),
        ),
        asyncio.get_running_loop().time,
    )
    rules = PipelineRules(
        settings.body_limit_bytes,
        StreamTimes(settings.commit_after_s, settings.ping_every_s),
        base64_embeddings=settings.base64_embeddings,
    )

    def spawn(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return process.spawn(work, name="request")

    return Pipeline(rules, gate, admission, inference, spawn=spawn, metrics=metrics)


def all_routes(pipeline: Pipeline) -> dict[tuple[str, str], Route]:
    """Every route of the public API."""
    return {
        **message_routes(pipeline),
        **chat_routes(pipeline),
        **model_routes(pipeline),
        **embedding_routes(pipeline),
        **rerank_routes(pipeline),
    }


def company_proxy(settings: Settings, pipeline: Pipeline) -> CompanyProxy:
    """The company proxy, on the same pipeline. Raises ProcessFailedError."""
    try:
        rules = read_rules(settings.catalogue)
    except ProxyFileError as error:
        raise ProcessFailedError(str(error)) from error
    return CompanyProxy(pipeline, rules, Page(settings.docs_assets_url))


async def run(settings: Settings) -> None:
    """Runs the edge until it is asked to stop."""
    async with Process(settings, CallerClass.EDGE) as process:
        metrics = EdgeMetrics()
        REGISTRY.register(metrics)
        process.readiness.set("inference", False)
        process.readiness.set("auth", False)
        pipeline = build_pipeline(settings, process, metrics)
        routes = {
            **all_routes(pipeline),
            **ops_routes(process.readiness, lambda: process.is_stopping, REGISTRY),
        }
        prefixes = {PREFIX: company_proxy(settings, pipeline)}
        front = Front(routes, documentation_app(), process.log, metrics, process.tracing, prefixes=prefixes)
        server = http_server(front, settings.drain_s)
        listener = _listen(settings)
        serving = process.spawn(server.serve(sockets=[listener]), name="http")
        process.spawn(_make_contact(pipeline, process), name="first contact")
        _log.info("process.listening", http=listener.getsockname()[1])
        gc.collect()
        gc.freeze()  # what the process was built from is never garbage, and is not worth looking at again
        gc.set_threshold(_GC_THRESHOLD)
        await process.wait_for_stop()
        await _drain(server, serving, pipeline, settings.drain_s)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ProcessFailedError(f"cannot listen on {settings.host}:{settings.port}") from error
    return listener


async def _make_contact(pipeline: Pipeline, process: Process) -> None:
    """Ready once both services have answered; whether they still do is told by each call, not by readiness."""
    while True:
        try:
            await pipeline.inference.profiles()
            break
        except GatewayError:
            await asyncio.sleep(_FIRST_CONTACT_S)
    process.readiness.set("inference", True)
    while not await pipeline.admission.answers():
        await asyncio.sleep(_FIRST_CONTACT_S)
    process.readiness.set("auth", True)
    _log.info("readiness.gained")


async def _drain(server: HttpServer, serving: "asyncio.Task[Any]", pipeline: Pipeline, drain_s: float) -> None:
    """No new connections; running streams get `drain_s` to end, then a typed error each."""
    _log.info("process.draining", drain_s=drain_s, running=len(pipeline.relays))
    server.should_exit = True
    await asyncio.wait((serving,), timeout=drain_s)
    if not serving.done():
        pipeline.relays.cut()
        await asyncio.wait((serving,), timeout=_LAST_WORDS_S + 2)
