"""Trace context, spans and the numbers of RPCs.

Owns their forms; refuses sockets.
"""

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.runtime.telemetry import (
    RpcMetrics,
    Tracing,
    current_traceparent,
    new_traceparent,
    parse_traceparent,
    set_traceparent,
    trace_id_of,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("value", "is_good"),
    [
        pytest.param(GOOD, True, id="the form"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-more", True, id="a later version may say more"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", False, id="the forbidden version"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", False, id="no trace id"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", False, id="no span id"),
        pytest.param(GOOD.upper(), False, id="capitals"),
        pytest.param(GOOD[:-1], False, id="too short"),
        pytest.param(b"00", False, id="bytes"),
        pytest.param("", False, id="empty"),
    ],
)
def test_a_malformed_header_is_as_good_as_none(value: object, is_good: bool) -> None:
    assert parse_traceparent(value) == (value if is_good else None)


def test_a_new_trace_is_well_formed_and_its_own() -> None:
    first, second = new_traceparent(), new_traceparent()
    assert parse_traceparent(first) == first
    assert trace_id_of(first) != trace_id_of(second)


def test_without_an_exporter_a_span_costs_and_changes_nothing() -> None:
    set_traceparent(GOOD)
    with Tracing().span("work"):
        assert current_traceparent() == GOOD


def test_spans_of_a_block_hang_below_the_caller_and_land_in_the_file(tmp_path: Path) -> None:
    tracing = Tracing.configured("auth-0", file=tmp_path / "spans.jsonl")
    set_traceparent(GOOD)
    with tracing.span("outer", profile="dragon"):
        inside = current_traceparent()
        with tracing.span("inner"):
            pass
    assert current_traceparent() == GOOD
    assert inside is not None
    tracing.close()
    inner, outer = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    assert (outer["name"], outer["trace_id"], outer["parent_span_id"]) == ("outer", TRACE, SPAN)
    assert (inner["name"], inner["trace_id"], inner["parent_span_id"]) == ("inner", TRACE, outer["span_id"])
    assert (outer["attributes"], outer["process"]) == ({"profile": "dragon"}, "auth-0")


def test_the_histogram_is_cumulative_and_sums_up() -> None:
    metrics, registry = RpcMetrics(), CollectorRegistry()
    registry.register(metrics)
    method = metrics.method("/mws.a.v1.A/Do")
    for duration_s in (0.0004, 0.0005, 0.3, 2_000.0):
        method.observe("OK", duration_s)
    method.observe("INTERNAL", 0.1)
    method.in_flight += 2
    text = generate_latest(registry).decode()
    head = 'mws_rpc_server_call_duration_seconds_{}{{code="OK",{}method="mws.a.v1.A/Do"}}'
    assert head.format("bucket", 'le="0.0005",') + " 2.0" in text
    assert head.format("bucket", 'le="0.5",') + " 3.0" in text
    assert head.format("bucket", 'le="+Inf",') + " 4.0" in text
    assert head.format("count", "") + " 4.0" in text
    assert 'mws_rpc_server_calls_in_flight{method="mws.a.v1.A/Do"} 2.0' in text
