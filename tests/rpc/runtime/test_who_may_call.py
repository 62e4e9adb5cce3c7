"""Every RPC × every caller class answers as the table says, from the descriptors of proto/mws.

Owns the enumeration; refuses to test what the methods do.
"""

from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from services.runtime.callers import ALLOWED
from services.runtime.calls import CallerClass, MethodTable
from services.runtime.errors import CallerNotAllowedError
from services.runtime.guard import ServiceGuard
from services.runtime.logging import EventLog
from tests.rpc.runtime.dummies import Serve, all_rpcs, do_nothing


def test_the_table_has_a_row_for_every_rpc_and_no_other() -> None:
    assert set(ALLOWED) == set(all_rpcs())


def test_a_method_without_a_row_fails_the_start(tmp_path: Any) -> None:
    table = MethodTable()
    table.methods["/mws.new.v1.NewService/Do"] = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="no row says who may call"), (tmp_path / "log").open("wb") as stream:
        ServiceGuard(table, EventLog(stream))


@pytest.mark.parametrize("caller_class", list(CallerClass), ids=str)
async def test_every_rpc_answers_a_caller_as_the_table_says(serve: Serve, caller_class: CallerClass) -> None:
    async with serve(do_nothing) as running:
        channel = running.channel(caller_class)
        outcomes = {path: await outcome_of(channel, path) for path in all_rpcs()}
    expected = {path: "served" if caller_class in ALLOWED[path] else str(caller_class) for path in all_rpcs()}
    assert outcomes == expected


async def outcome_of(channel: Any, path: str) -> str:
    """`served`, or the class that the refusal names."""
    try:
        await call(channel, path)
    except CallerNotAllowedError as error:
        return error.metadata["caller_class"]
    return "served"


async def call(channel: Any, path: str) -> list[Any]:
    rpc = all_rpcs()[path]
    request = message_factory.GetMessageClass(rpc.input_type)
    response = message_factory.GetMessageClass(rpc.output_type)
    kind = channel.unary_stream if rpc.server_streaming else channel.unary_unary
    running = kind(path, request.SerializeToString, response.FromString)(request(), timeout=5.0)
    return [message async for message in running] if rpc.server_streaming else [await running]


async def test_a_call_without_a_token_is_unauthenticated(serve: Serve) -> None:
    async with serve(do_nothing) as running, grpc.aio.insecure_channel(running.address) as raw:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await raw.unary_unary("/mws.inference.v1.InferenceService/Embed", bytes, bytes)(b"", timeout=5.0)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
