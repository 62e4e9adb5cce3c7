"""Who calls and in which trace, as a handler sees it.

Owns teams, service callers, metadata and trace context over real sockets; refuses the table of rights.
"""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from mws.inference.v1 import inference_service_pb2 as pb
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.runtime.callers import account_for, read_token
from services.runtime.calls import Call, Caller, CallerClass
from services.runtime.channel import connect
from services.runtime.errors import (
    DeadlineExceededError,
    ForeignAccountError,
    InvalidCredentialError,
    ServiceUnavailableError,
)
from services.runtime.telemetry import current_traceparent, set_traceparent
from tests.rpc.runtime.dummies import TEAM, Serve, free_port, serving

TRANSPORTS = ["grpc", "link"]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Recorder:
    """Remembers what its calls were."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.traces: list[str | None] = []

    async def __call__(self, request: Any, call: Call) -> None:
        self.calls.append(call)
        self.traces.append(current_traceparent())
        call.trailing_metadata = (("x-served-by", "probe"),)
        if request.model:
            account_for(call, request.model)


async def test_a_team_is_resolved_once_and_acts_for_its_own_account(serve: Serve) -> None:
    seen = Recorder()
    async with serve(seen) as running:
        stub = InferenceServiceStub(running.channel(CallerClass.TEAM))
        await stub.Embed(pb.EmbedRequest(model=TEAM.account_id), timeout=5.0)
        with pytest.raises(ForeignAccountError):
            await stub.Embed(pb.EmbedRequest(model="account-8"), timeout=5.0)
        log = running.log.getvalue().decode()
    assert [call.caller for call in seen.calls] == [TEAM, TEAM]
    assert "mws_live" not in log


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("token", [pytest.param("mws_service_edge_forged", id="forged"), pytest.param("", id="none")])
async def test_a_bad_service_token_is_an_outage_and_never_a_bad_key(serve: Serve, transport: str, token: str) -> None:
    seen = Recorder()
    async with serve(seen) as running:
        stub = InferenceServiceStub(running.channel(CallerClass.EDGE, transport, token=token))
        with pytest.raises((ServiceUnavailableError, DeadlineExceededError)):  # a link goes on dialling
            await stub.Embed(pb.EmbedRequest(), timeout=0.5)
    assert seen.calls == []


async def test_an_unknown_key_of_a_team_is_invalid(serve: Serve) -> None:
    seen = Recorder()
    async with serve(seen) as running:
        stub = InferenceServiceStub(running.channel(CallerClass.TEAM, token="mws_live_unknown"))
        with pytest.raises(InvalidCredentialError):
            await stub.Embed(pb.EmbedRequest(), timeout=5.0)
    assert seen.calls == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_handler_sees_caller_and_metadata_but_never_the_token(serve: Serve, transport: str) -> None:
    seen = Recorder()
    async with serve(seen) as running:
        stub: Any = InferenceServiceStub(running.channel(CallerClass.EDGE, transport))
        await stub.Embed(pb.EmbedRequest(), timeout=5.0, metadata=(("x-request-id", "r1"),))
        token = read_token(running.data_dir / "secrets", CallerClass.EDGE)
    (call,) = seen.calls
    assert call.caller == Caller(CallerClass.EDGE, "edge")
    assert dict(call.metadata)["x-request-id"] == "r1"
    assert all(token not in str(value) for _, value in call.metadata)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_trace_goes_on_at_the_other_side(serve: Serve, transport: str) -> None:
    seen = Recorder()
    async with serve(seen) as running:
        stub = InferenceServiceStub(running.channel(CallerClass.EDGE, transport))
        set_traceparent(TRACEPARENT)
        await stub.Embed(pb.EmbedRequest(), timeout=5.0)
        set_traceparent(None)
        await stub.Embed(pb.EmbedRequest(), timeout=5.0)
        logged = [line["trace_id"] for line in running.calls_logged()]
    assert seen.traces[0] == TRACEPARENT
    assert seen.traces[1] not in (None, TRACEPARENT)
    assert logged == [trace[3:35] for trace in seen.traces if trace]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_spans_of_both_transports_are_children_of_the_caller(serve: Serve, transport: str) -> None:
    async with serve(Recorder()) as running:
        pass
    path = running.data_dir / "spans.jsonl"
    async with serve(Recorder(), trace_file=path) as running:
        stub = InferenceServiceStub(running.channel(CallerClass.EDGE, transport))
        set_traceparent(TRACEPARENT)
        await stub.Embed(pb.EmbedRequest(), timeout=5.0)
        set_traceparent(None)
    (span,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (span["trace_id"], span["parent_span_id"]) == (TRACEPARENT[3:35], TRACEPARENT[36:52])


async def test_plain_calls_go_round_over_the_endpoints_that_are_up(serve: Serve, tmp_path: Any) -> None:
    seen = [Recorder(), Recorder()]
    async with serve(seen[0]) as first, serving(tmp_path, seen[1]) as second:
        nowhere = f"127.0.0.1:{free_port()}"
        token = read_token(tmp_path / "secrets", CallerClass.EDGE)
        channel = connect([first.address, nowhere, second.address], transport="grpc", token=token)
        stub = InferenceServiceStub(channel)
        outcomes = Counter([await outcome_of(stub) for _ in range(20)])
        await channel.close(None)
    assert outcomes["served"] >= 18  # the one that is down is found out by its first call
    assert set(outcomes) <= {"served", "unavailable: the service could not be reached"}
    assert min(len(recorder.calls) for recorder in seen) >= 6


async def outcome_of(stub: Any) -> str:
    try:
        await stub.Embed(pb.EmbedRequest(), timeout=5.0)
    except ServiceUnavailableError as error:
        return f"unavailable: {error.message}"
    return "served"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_trailing_metadata_arrives(serve: Serve, transport: str) -> None:
    async with serve(Recorder()) as running:
        stub: Any = InferenceServiceStub(running.channel(CallerClass.EDGE, transport))
        call = stub.Generate(pb.GenerateRequest(), timeout=5.0)
        assert [response async for response in call] == [pb.GenerateResponse()]
        assert ("x-served-by", "probe") in tuple(call.trailing_metadata)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_cancelling_the_task_that_waits_cancels_the_call(serve: Serve, transport: str) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any, _call: Call) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with serve(wait) as running:
        stub = InferenceServiceStub(running.channel(CallerClass.EDGE, transport))

        async def embed() -> Any:
            return await stub.Embed(pb.EmbedRequest(), timeout=5.0)

        task = asyncio.ensure_future(embed())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await left.wait()
