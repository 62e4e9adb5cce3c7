"""An ordinary gRPC client, as an internal team writes it: generated stubs, one channel, a bearer token.

Owns connecting and reading the one `ErrorInfo` of a failure; uses nothing of our runtime, so it proves the wire.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from mws.common.v1 import credential_pb2
from mws.inference.v1 import generation_pb2, inference_service_pb2
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.runtime.ids import new_id

Stub = TypeVar("Stub")


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call as its status details tell it."""

    code: grpc.StatusCode
    reason: str
    domain: str
    metadata: dict[str, str]
    detail_types: tuple[str, ...]


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Reads the rich status. Raises AssertionError unless it holds exactly one ErrorInfo."""
    trailers: Any = error.trailing_metadata() or ()
    found = [value for key, value in trailers if key == "grpc-status-details-bin"]
    assert len(found) == 1, f"{error.code()} without details: {error.details()}"
    assert isinstance(found[0], bytes)
    status = status_pb2.Status.FromString(found[0])
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1, status
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    types = tuple(detail.TypeName() for detail in status.details)
    return Failure(error.code(), info.reason, info.domain, dict(info.metadata), types)


@asynccontextmanager
async def stub(make: Callable[[grpc.aio.Channel], Stub], target: str) -> AsyncIterator[Stub]:
    """A stub on a channel of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield make(channel)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata that proves who calls."""
    return (("authorization", f"Bearer {token}"),) if token else ()


async def attempt(call: Any) -> Any:
    """The response of a unary call, or its Failure."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error)


def generate_request(text: str, *, account_id: str = "", call_id: str = "", max_tokens: int = 64) -> Any:
    """A streaming `GenerateRequest` of one user message; `account_id` pays, a team may leave it out."""
    block = generation_pb2.ContentBlock(text=generation_pb2.TextBlock(text=text))
    message = generation_pb2.Message(role=generation_pb2.ROLE_USER, content=[block])
    generation = generation_pb2.Generation(messages=[message], max_output_tokens=max_tokens, stream=True)
    credential = credential_pb2.Credential(account_id=account_id) if account_id else None
    return inference_service_pb2.GenerateRequest(
        call_id=call_id or new_id(), model="dragon", generation=generation, credential=credential
    )


async def generate(inference: InferenceServiceStub, request: Any, token: str) -> list[Any] | Failure:
    """All events of a call, or its Failure."""
    events: list[Any] = []
    try:
        call: Any = inference.Generate(request, metadata=bearer(token), timeout=60)
        async for response in call:
            events += response.events
    except grpc.aio.AioRpcError as error:
        return failure_of(error)
    return events


def kinds(events: list[Any]) -> list[str]:
    """The kinds of events in order, runs of one kind folded."""
    names: list[str] = []
    for event in events:
        name = event.WhichOneof("kind")
        if not names or names[-1] != name:
            names.append(name)
    return names


async def race(calls: list[Any]) -> list[Any]:
    """Starts all coroutines before any of them runs, and gathers their results."""
    barrier = asyncio.Event()

    async def start(call: Any) -> Any:
        await barrier.wait()
        return await call

    tasks = [asyncio.ensure_future(start(call)) for call in calls]
    barrier.set()
    return await asyncio.gather(*tasks)
