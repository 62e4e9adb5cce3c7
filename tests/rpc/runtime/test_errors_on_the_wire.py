"""A failure that a handler raises is the failure that the caller catches, for every reason; nothing else gets out.

Owns the round trip over real sockets; refuses to test the mapping itself (see tests/unit/runtime).
"""

from datetime import timedelta
from typing import Any

import grpc
import pytest
from mws.common.v1 import error_reason_pb2 as reasons
from mws.common.v1 import limits_pb2
from mws.inference.v1 import inference_service_pb2 as pb
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.runtime.calls import Call, CallerClass
from services.runtime.errors import BY_REASON, FieldViolation, GatewayError, InvalidRequestError, UnimplementedError
from tests.rpc.runtime.dummies import Serve

TRANSPORTS = ["grpc", "link"]
SECRET = "mws_live_do_not_tell"
LIMITS = limits_pb2.LimitsSnapshot()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("is_stream", [pytest.param(False, id="unary"), pytest.param(True, id="stream")])
async def test_every_reason_comes_back_as_it_was_raised(serve: Serve, transport: str, is_stream: bool) -> None:
    async def fail(request: Any, _call: Call) -> None:
        raise rich(BY_REASON[reasons.ErrorReason.Value(request.model)])

    seen = {}
    async with serve(fail) as running:
        stub = InferenceServiceStub(running.channel(CallerClass.EDGE, transport))
        for reason in BY_REASON:
            seen[reason] = shape(await failure_of(stub, reasons.ErrorReason.Name(reason), is_stream))
    assert seen == {reason: shape(rich(cls)) for reason, cls in BY_REASON.items()}


def rich(cls: type[GatewayError]) -> GatewayError:
    """An error of this class with everything that an error may have."""
    return cls(
        f"text of {cls.__name__}: ümläut, 100 %",
        retry_in=timedelta(seconds=1.5),
        metadata={"limit": "tokens"},
        violations=[FieldViolation("messages[0].role", "is missing")],
        details=[LIMITS],
    )


def shape(error: GatewayError) -> tuple[Any, ...]:
    return type(error), error.message, error.retry_in, error.metadata, error.violations, error.limits


async def failure_of(stub: Any, model: str, is_stream: bool) -> GatewayError:
    if is_stream:
        outcome = consume(stub.Generate(pb.GenerateRequest(model=model), timeout=5.0))
    else:
        outcome = stub.Embed(pb.EmbedRequest(model=model), timeout=5.0)
    with pytest.raises(GatewayError) as caught:
        await outcome
    return caught.value


async def consume(stream: Any) -> list[Any]:
    return [message async for message in stream]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_unexpected_exception_leaks_nothing(serve: Serve, transport: str) -> None:
    async def break_down(_request: Any, _call: Call) -> None:
        raise ValueError(f"cannot parse {SECRET}")

    async with serve(break_down) as running:
        stub = InferenceServiceStub(running.channel(CallerClass.EDGE, transport))
        error = await failure_of(stub, "any", is_stream=False)
        broke = [line for line in running.lines() if line["event"] == "rpc.broke"]
        text = running.log.getvalue().decode()
    assert (type(error), error.message) == (GatewayError, "internal error")
    assert "ValueError" in broke[0]["exception"]
    assert "in break_down" in broke[0]["exception"]
    assert SECRET not in text


async def test_a_body_that_is_no_message_is_an_invalid_request(serve: Serve) -> None:
    async def unreachable(_request: Any, _call: Call) -> None:
        raise AssertionError("not called")

    async with serve(unreachable) as running:
        embed = running.channel(CallerClass.EDGE).unary_unary("/mws.inference.v1.InferenceService/Embed", bytes, bytes)
        with pytest.raises(InvalidRequestError):
            await embed(b"\xff\xff\xff", timeout=5.0)


async def test_an_unknown_method_is_unimplemented_with_a_reason(serve: Serve) -> None:
    async def unreachable(_request: Any, _call: Call) -> None:
        raise AssertionError("not called")

    async with serve(unreachable) as running, grpc.aio.insecure_channel(running.address) as raw:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.unary_unary("/mws.nowhere.v1.NoService/Do", bytes, bytes)(b"", timeout=5.0)
        trailing: Any = caught.value.trailing_metadata()
        assert "grpc-status-details-bin" in dict(trailing)
        nowhere = running.channel(CallerClass.EDGE).unary_unary("/mws.nowhere.v1.NoService/Do", bytes, bytes)
        with pytest.raises(UnimplementedError):
            await nowhere(b"", timeout=5.0)
