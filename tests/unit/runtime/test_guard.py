"""What the guard does around a call, without a transport.

Owns deadlines, refusals, errors and figures; refuses sockets.
"""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from services.runtime.calls import Call, Caller, CallerClass, CancelReason, Method, MethodTable
from services.runtime.errors import (
    CallCancelledError,
    CallerNotAllowedError,
    DeadlineExceededError,
    GatewayError,
    MissingCredentialError,
    ServiceUnavailableError,
)
from services.runtime.guard import ServiceGuard
from services.runtime.logging import EventLog
from services.runtime.telemetry import RPC_METRICS, Tracing, current_traceparent

ADMIT = "/mws.admission.v1.AdmissionService/Admit"
GENERATE = "/mws.inference.v1.InferenceService/Generate"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INFERENCE = Caller(CallerClass.INFERENCE, "inference")


async def never(_request: Any, _call: Any) -> None:
    """The guard does not run handlers."""


METHODS = {path: Method(path, never, bytes, bytes, path == GENERATE) for path in (ADMIT, GENERATE)}


class Bench:
    """A guard and what it wrote."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.stream = io.BytesIO()
        self.log = EventLog(self.stream)
        self.guard = ServiceGuard(MethodTable(METHODS), self.log, tracing=tracing)

    def run(self, error: BaseException | None = None, **call: Any) -> GatewayError | None:
        """One call of Admit that ends so."""
        served = call_of(**call)
        self.guard.admit(METHODS[ADMIT], served)
        return self.guard.finish(METHODS[ADMIT], served, error)

    def lines(self) -> list[dict[str, Any]]:
        self.log.flush()
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def call_of(
    *,
    caller: Caller = INFERENCE,
    metadata: Any = (),
    deadline: float | None = None,
    cancel_reason: CancelReason | None = None,
) -> Call:
    call = Call(ADMIT, caller, metadata, asyncio.get_running_loop().time(), deadline)
    call.cancel_reason = cancel_reason
    return call


@pytest.mark.parametrize(
    ("path", "caller", "deadline_s"),
    [
        pytest.param(ADMIT, INFERENCE, 30.0, id="unary"),
        pytest.param(GENERATE, Caller(CallerClass.EDGE, "edge"), 900.0, id="stream"),
    ],
)
async def test_a_call_without_a_deadline_gets_its_default(path: str, caller: Caller, deadline_s: float) -> None:
    call = call_of(caller=caller)
    Bench().guard.admit(METHODS[path], call)
    assert call.deadline is not None
    assert call.deadline - asyncio.get_running_loop().time() == pytest.approx(deadline_s, abs=1)


async def test_a_deadline_of_the_caller_is_kept() -> None:
    call = call_of(deadline=5.0)
    Bench().guard.admit(METHODS[ADMIT], call)
    assert call.deadline == 5.0


async def test_a_class_without_the_right_is_refused_by_name() -> None:
    bench, call = Bench(), call_of(caller=Caller(CallerClass.EDGE, "edge"))
    with pytest.raises(CallerNotAllowedError) as refused:
        bench.guard.admit(METHODS[ADMIT], call)
    assert refused.value.metadata == {"caller_class": "edge"}
    assert bench.guard.finish(METHODS[ADMIT], call, refused.value) is refused.value
    assert [(line["code"], line["reason"]) for line in bench.lines()] == [("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")]


@pytest.mark.parametrize(
    ("error", "cancel_reason", "expected"),
    [
        pytest.param(None, None, None, id="success"),
        pytest.param(ValueError("secret"), None, (GatewayError, "internal error", {}), id="a defect"),
        pytest.param(
            asyncio.CancelledError(),
            CancelReason.CLIENT_GONE,
            (CallCancelledError, "the caller cancelled", {"cancel_reason": "client_gone"}),
            id="the client left",
        ),
        pytest.param(
            asyncio.CancelledError(), None, (CallCancelledError, "the caller was lost", {}), id="the link was lost"
        ),
        pytest.param(
            asyncio.CancelledError(),
            CancelReason.DEADLINE,
            (DeadlineExceededError, "the call's deadline passed", {}),
            id="too late",
        ),
        pytest.param(
            asyncio.CancelledError(),
            CancelReason.SHUTDOWN,
            (ServiceUnavailableError, "the service is shutting down", {}),
            id="we go",
        ),
    ],
)
async def test_how_a_call_ended_becomes_its_failure(
    error: BaseException | None, cancel_reason: CancelReason | None, expected: Any
) -> None:
    failure = Bench().run(error, cancel_reason=cancel_reason)
    assert (failure and (type(failure), failure.message, failure.metadata)) == expected


async def test_a_defect_is_reported_beside_the_call_line() -> None:
    bench = Bench()
    bench.run(ValueError("secret"))
    finished, broke = bench.lines()
    assert (finished["event"], finished["code"], broke["event"]) == ("rpc.finished", "INTERNAL", "rpc.broke")
    assert "secret" not in bench.stream.getvalue().decode()


async def test_a_call_refused_before_its_caller_was_known_is_counted_and_logged() -> None:
    bench, call = Bench(), call_of()
    in_flight = RPC_METRICS.method(ADMIT).in_flight
    failure = bench.guard.finish(METHODS[ADMIT], call, MissingCredentialError("a credential is needed"))
    assert isinstance(failure, MissingCredentialError)
    assert RPC_METRICS.method(ADMIT).in_flight == in_flight
    assert bench.lines()[0]["reason"] == "CREDENTIAL_MISSING"


async def test_running_calls_are_counted_while_they_run() -> None:
    bench, call, metrics = Bench(), call_of(), RPC_METRICS.method(ADMIT)
    before = metrics.in_flight
    bench.guard.admit(METHODS[ADMIT], call)
    assert metrics.in_flight == before + 1
    bench.guard.finish(METHODS[ADMIT], call, None)
    assert metrics.in_flight == before


@pytest.mark.parametrize(
    ("metadata", "is_passed_on"),
    [
        pytest.param([("traceparent", TRACEPARENT)], True, id="a caller's trace goes on"),
        pytest.param([("traceparent", "nonsense")], False, id="nonsense starts a new one"),
        pytest.param([], False, id="none starts a new one"),
    ],
)
async def test_every_call_is_in_a_trace(metadata: Any, is_passed_on: bool) -> None:
    bench = Bench()
    bench.run(metadata=metadata)
    current = current_traceparent()
    assert current is not None
    assert (current == TRACEPARENT) is is_passed_on
    assert bench.lines()[0]["trace_id"] == current[3:35]


async def test_a_span_is_the_child_of_the_callers(tmp_path: Path) -> None:
    tracing = Tracing.configured("auth-0", file=tmp_path / "spans.jsonl")
    bench = Bench(tracing)
    bench.run(MissingCredentialError("no"), metadata=[("traceparent", TRACEPARENT)])
    tracing.close()
    (span,) = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    assert (span["trace_id"], span["parent_span_id"]) == (TRACEPARENT[3:35], TRACEPARENT[36:52])
    assert (span["kind"], span["status"], span["name"]) == ("SERVER", "ERROR", ADMIT[1:])
    assert span["attributes"]["error.type"] == "CREDENTIAL_MISSING"
    assert current_traceparent() == f"00-{span['trace_id']}-{span['span_id']}-01"
