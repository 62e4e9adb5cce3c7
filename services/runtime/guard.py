"""What stands around every call of every transport: who may call, default deadline, errors, log line, metrics, span.

Owns the order in which these happen and what a failure may say; refuses to move bytes and to know any method's meaning.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from opentelemetry.trace import Span, SpanKind, StatusCode

from services.runtime.callers import ALLOWED, check_rows
from services.runtime.calls import Call, CallerClass, CancelReason, Method, MethodTable
from services.runtime.errors import (
    CallCancelledError,
    CallerNotAllowedError,
    DeadlineExceededError,
    GatewayError,
    ServiceUnavailableError,
    reason_name,
)
from services.runtime.logging import EventLog, describe, timestamp
from services.runtime.telemetry import (
    CURRENT_TRACE,
    RPC_METRICS,
    TRACEPARENT,
    MethodMetrics,
    Tracing,
    new_traceparent,
    parse_traceparent,
    trace_id_of,
    traceparent_of,
)

UNARY_DEADLINE_S = 30.0
STREAM_DEADLINE_S = 900.0


# What is known of a running call, from `admit` to `finish`: when it started (perf_counter), its trace, its span.
_Observed = tuple[float, str, Span | None]
_OK = "OK"


class _Row:
    """All that is looked up per method, bound once."""

    __slots__ = ("allowed", "deadline_s", "metrics", "name")

    def __init__(self, method: Method, allowed: frozenset[CallerClass], metrics: MethodMetrics) -> None:
        self.name = method.path.removeprefix("/")
        self.allowed, self.metrics = allowed, metrics
        self.deadline_s = STREAM_DEADLINE_S if method.is_streaming else UNARY_DEADLINE_S


class ServiceGuard:
    """The Guard of a process. Costs a few microseconds per call: nothing here awaits, locks or formats for success."""

    def __init__(
        self,
        table: MethodTable,
        log: EventLog,
        *,
        tracing: Tracing | None = None,
        allowed: Mapping[str, frozenset[CallerClass]] = ALLOWED,
    ) -> None:
        check_rows(table.methods, allowed)
        self._log = log
        self._tracing = tracing or Tracing()
        self._rows = {
            path: _Row(method, allowed[path], RPC_METRICS.method(path)) for path, method in table.methods.items()
        }

    def admit(self, method: Method, call: Call) -> None:
        """Checks the caller's class, sets the default deadline and the trace. Raises CallerNotAllowedError."""
        row = self._rows[method.path]
        row.metrics.in_flight += 1
        call.observed = self._observe(row, call)
        if call.deadline is None:
            call.deadline = asyncio.get_running_loop().time() + row.deadline_s
        if call.caller.caller_class not in row.allowed:
            raise CallerNotAllowedError(
                f"a caller of class {call.caller.caller_class} may not call {row.name}",
                metadata={"caller_class": str(call.caller.caller_class)},
            )

    def _observe(self, row: _Row, call: Call) -> _Observed:
        traceparent, span = None, None
        for key, value in call.metadata:
            if key == TRACEPARENT:
                traceparent = parse_traceparent(value)
                break
        if self._tracing.is_on:
            span = self._tracing.start(row.name, traceparent, SpanKind.SERVER)
            traceparent = traceparent_of(span)
        elif traceparent is None:
            traceparent = new_traceparent()
        CURRENT_TRACE.set(traceparent)
        return time.perf_counter(), trace_id_of(traceparent), span

    def finish(self, method: Method, call: Call, error: BaseException | None) -> GatewayError | None:
        """Counts and logs the call; returns the failure to send, if any: never an unexpected exception's text."""
        failure = None if error is None else _failure_of(call, error)
        row = self._rows[method.path]
        code = _OK if failure is None else failure.code.name
        observed: _Observed | None = call.observed
        if observed is None:  # refused before `admit`: nobody knows who calls
            duration_s, trace_id = max(0.0, asyncio.get_running_loop().time() - call.started), ""
        else:
            call.observed = None
            started_s, trace_id, span = observed
            duration_s = time.perf_counter() - started_s
            row.metrics.in_flight -= 1
            if span is not None:
                _end_span(span, call, failure)
        row.metrics.observe(code, duration_s)
        if self._log.level <= logging.INFO:
            self._log.write(_line(row, call, failure, (code, duration_s, trace_id)))
        if failure is not None and failure is not error and type(failure) is GatewayError:
            assert error is not None
            self._report_defect(row, trace_id, error)
        return failure

    def _report_defect(self, row: _Row, trace_id: str, error: BaseException) -> None:
        """The one place that says what really happened: frames and types, and not what the exception quotes."""
        self._log.write(
            {
                "timestamp": timestamp(),
                "level": "error",
                "event": "rpc.broke",
                "method": row.name,
                "trace_id": trace_id,
                "exception": describe(error),
            },
            level=logging.ERROR,
        )


def _line(row: _Row, call: Call, failure: GatewayError | None, ended: tuple[str, float, str]) -> dict[str, Any]:
    """The call's canonical line; `ended` is its code, its duration in seconds and its trace id."""
    code, duration_s, trace_id = ended
    line: dict[str, Any] = {
        "timestamp": timestamp(),
        "level": "info",
        "event": "rpc.finished",
        "method": row.name,
        "code": code,
        "reason": "" if failure is None else reason_name(failure),
        "duration_ms": int(duration_s * 1_000_000) / 1_000,
        "caller": call.caller.name,
        "trace_id": trace_id,
    }
    if call.cancel_reason is not None:
        line["cancel_reason"] = call.cancel_reason
    if call.facts is not None:
        line.update(call.facts)
    return line


def _failure_of(call: Call, error: BaseException) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if not isinstance(error, asyncio.CancelledError):
        return GatewayError()
    if call.cancel_reason is CancelReason.DEADLINE:
        return DeadlineExceededError("the call's deadline passed")
    if call.cancel_reason is CancelReason.SHUTDOWN:
        return ServiceUnavailableError("the service is shutting down", retry_in=timedelta(seconds=1))
    if call.cancel_reason is None:  # the connection broke: nobody said why, and nobody reads the answer
        return CallCancelledError("the caller was lost")
    return CallCancelledError("the caller cancelled", metadata={"cancel_reason": str(call.cancel_reason)})


def _end_span(span: Span, call: Call, failure: GatewayError | None) -> None:
    span.set_attributes(
        {
            "rpc.system.name": "grpc",
            "rpc.method": call.path.removeprefix("/"),
            "rpc.response.status_code": "OK" if failure is None else failure.code.name,
        }
    )
    if failure is not None:
        span.set_attribute("error.type", reason_name(failure))
        span.set_status(StatusCode.ERROR)
    span.end()
