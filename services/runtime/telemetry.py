"""Trace context, spans and the numbers of RPCs.

Owns how a trace passes through a process and what `/metrics` says of calls; refuses to know any service's own figures.
"""

import contextlib
import re
import secrets
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import msgspec
from opentelemetry import trace as otel
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

# ---- Trace context (W3C). Kept as the header's text: most processes only pass it on. ----

TRACEPARENT = "traceparent"
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:$|-)")
CURRENT_TRACE: ContextVar[str | None] = ContextVar("traceparent", default=None)


def current_traceparent() -> str | None:
    """The `traceparent` to send with calls made now; None outside of any trace."""
    return CURRENT_TRACE.get()


def set_traceparent(traceparent: str | None) -> None:
    """Makes a trace the current one, for this task and what it starts."""
    CURRENT_TRACE.set(traceparent)


def parse_traceparent(value: object) -> str | None:
    """The header's value if it is one; a malformed one is as good as none (W3C trace context, 3.2.2)."""
    return value if isinstance(value, str) and _FORM.match(value) else None


def new_traceparent() -> str:
    """The root of a new trace, sampled."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_id_of(traceparent: str) -> str:
    """The 32 hex digits that all of a trace's spans share."""
    return traceparent[3:35]


# ---- Spans ----


class Tracing:
    """Makes spans when somewhere to send them was configured, and otherwise costs nothing."""

    def __init__(self, tracer: otel.Tracer | None = None, provider: TracerProvider | None = None) -> None:
        self._tracer, self._provider = tracer, provider
        self.is_on = tracer is not None

    @classmethod
    def configured(cls, process: str, *, endpoint: str | None = None, file: Path | None = None) -> "Tracing":
        """Tracing to an OTLP endpoint, to a file of JSON lines, to both or (neither given) to nowhere."""
        if endpoint is None and file is None:
            return cls()
        provider = TracerProvider(resource=Resource.create({"service.name": "mws", "service.instance.id": process}))
        if file is not None:
            provider.add_span_processor(SimpleSpanProcessor(JsonLinesExporter(file)))
        if endpoint is not None:
            provider.add_span_processor(BatchSpanProcessor(_otlp_exporter(endpoint)))
        return cls(provider.get_tracer("mws"), provider)

    def start(self, name: str, parent: str | None, kind: otel.SpanKind = otel.SpanKind.INTERNAL) -> otel.Span:
        """Starts a span below `parent` (a traceparent). Only when tracing is on."""
        assert self._tracer is not None
        return self._tracer.start_span(name, context=_context_of(parent), kind=kind)

    @contextlib.contextmanager
    def span(self, name: str, **attributes: str | int | float | bool) -> Iterator[None]:
        """A span around a block, current inside it; nothing at all when tracing is off."""
        if self._tracer is None:
            yield
            return
        before = CURRENT_TRACE.get()
        span = self.start(name, before)
        span.set_attributes(attributes)
        CURRENT_TRACE.set(traceparent_of(span))
        try:
            yield
        finally:
            CURRENT_TRACE.set(before)
            span.end()

    def close(self) -> None:
        """Sends what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def traceparent_of(span: otel.Span) -> str:
    """The header's text for what happens inside this span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _context_of(traceparent: str | None) -> Any:
    if traceparent is None:
        return otel.set_span_in_context(otel.INVALID_SPAN)
    _, trace_id, span_id, flags = traceparent.split("-")[:4]
    parent = otel.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=otel.TraceFlags(int(flags, 16))
    )
    return otel.set_span_in_context(otel.NonRecordingSpan(parent))


def _otlp_exporter(endpoint: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # type: ignore[import-not-found,unused-ignore]
            OTLPSpanExporter,
        )
    except ImportError as error:
        raise RuntimeError(
            "a trace endpoint is set, and opentelemetry-exporter-otlp-proto-grpc is not installed"
        ) from error
    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    return exporter


class JsonLinesExporter(SpanExporter):
    """Appends each ended span to a file as one line of JSON: for tests, and for a look without a collector."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes the spans."""
        with self._lock:
            for span in spans:
                self._file.write(msgspec.json.encode(_span_fields(span)) + b"\n")
            self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file."""
        self._file.close()


def _span_fields(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else "",
        "process": span.resource.attributes.get("service.instance.id", ""),
        "start_unix_ns": span.start_time,
        "end_unix_ns": span.end_time,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
    }


# ---- Metrics of RPCs. Plain integers, read at a scrape: a labelled prometheus child takes a lock per sample. ----

BUCKETS_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    900.0,
)


class Durations:
    """One histogram child. Written on the loop only; a scrape in another thread reads it a sample late at worst."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Adds a sample."""
        self.counts[bisect_left(BUCKETS_S, duration_s)] += 1
        self.sum_s += duration_s


class MethodMetrics:
    """The numbers of one method: calls now running, and durations per gRPC code."""

    __slots__ = ("by_code", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        self.by_code: dict[str, Durations] = {}

    def observe(self, code: str, duration_s: float) -> None:
        """Adds a finished call."""
        durations = self.by_code.get(code)
        if durations is None:
            durations = self.by_code[code] = Durations()
        durations.observe(duration_s)


class RpcMetrics(Collector):
    """`mws_rpc_server_call_duration_seconds` and `mws_rpc_server_calls_in_flight`, over all guards of this process."""

    def __init__(self) -> None:
        self._methods: dict[str, MethodMetrics] = {}

    def method(self, path: str) -> MethodMetrics:
        """The numbers of a method; shared by all transports."""
        return self._methods.setdefault(path, MethodMetrics())

    def collect(self) -> Iterable[HistogramMetricFamily | GaugeMetricFamily]:
        """Reads everything, for a scrape."""
        durations = HistogramMetricFamily(
            "mws_rpc_server_call_duration_seconds",
            "How long calls took, by method and gRPC code.",
            labels=("method", "code"),
        )
        running = GaugeMetricFamily("mws_rpc_server_calls_in_flight", "Calls that are running now.", labels=("method",))
        for path, metrics in sorted(self._methods.items()):
            name = path.removeprefix("/")
            running.add_metric((name,), metrics.in_flight)
            for code, child in list(metrics.by_code.items()):
                durations.add_metric((name, code), _cumulative(child.counts), child.sum_s)
        yield durations
        yield running


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


RPC_METRICS = RpcMetrics()
REGISTRY.register(RPC_METRICS)


class MetricsListener:
    """`/metrics` over HTTP, in threads of its own, so that a scrape never holds up the loop."""

    def __init__(self, host: str, port: int) -> None:
        """Listens. Raises OSError when the address is taken."""
        self._server = make_server(host, port, make_wsgi_app(), ThreadingWSGIServer, handler_class=_SilentHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def close(self) -> None:
        """Stops listening; blocks for a tenth of a second at most."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """A scrape is not worth a line."""
