"""Channels to other services: what generated stubs are built on, whichever transport carries the calls.

Owns plain gRPC as a caller sees it and the choice of transport; refuses to retry: callers know what may be repeated.
"""

import asyncio
import itertools
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from typing import Any, Literal, Protocol, cast, runtime_checkable

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from services.link.client import LinkChannel
from services.link.connection import Identity
from services.runtime.callers import OF_THE_CALLER
from services.runtime.calls import CancelReason, Deserializer, Metadata, Serializer
from services.runtime.errors import (
    CallCancelledError,
    DeadlineExceededError,
    GatewayError,
    InvalidCredentialError,
    MissingCredentialError,
    ServiceUnavailableError,
    from_status,
)
from services.runtime.server import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, STATUS_DETAILS
from services.runtime.settings import LINK_PORT_OFFSET
from services.runtime.telemetry import TRACEPARENT, current_traceparent

_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.service_config", _ROUND_ROBIN),  # over all addresses of a `dns:` name
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)
_DOWN = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


@runtime_checkable
class Cancellable(Protocol):
    """A running call of any transport."""

    def cancel(self, reason: CancelReason = CancelReason.CLIENT_GONE) -> bool:
        """Cancels the call; false when it had ended already."""


def cancel(call: object, reason: CancelReason) -> bool:
    """Cancels a call that a stub returned, and says why. (The stubs' types know `cancel()` without a reason only.)"""
    assert isinstance(call, Cancellable)
    return call.cancel(reason)


def connect(
    endpoints: Sequence[str], *, transport: Literal["link", "grpc"], token: str, name: str = ""
) -> grpc.aio.Channel:
    """A channel to one service. `endpoints` are its plain gRPC addresses, `host:port` or `dns:host:port`.

    Generated stubs take it; `timeout=` is required on every call, and every failure is a GatewayError.
    """
    if not endpoints:
        raise ValueError(f"no endpoint is configured for {name or 'a service'}")
    if transport == "grpc":
        return cast("grpc.aio.Channel", GrpcChannel(endpoints, token))
    links = [_link_endpoint(endpoint) for endpoint in endpoints]
    return cast(
        "grpc.aio.Channel", LinkChannel(links, Identity(token=token, name=name), trace_context=current_traceparent)
    )


def _link_endpoint(endpoint: str) -> str:
    """Where the process behind a plain gRPC address takes links."""
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + LINK_PORT_OFFSET}"


class GrpcChannel:
    """Plain gRPC: a connection per endpoint, calls go round over those that are up.

    What plain gRPC cannot do that the link does: carry the reason of a cancellation. The server infers it (deadline
    passed, else client gone), so a SHUTDOWN arrives there as CLIENT_GONE.
    """

    def __init__(self, endpoints: Sequence[str], token: str) -> None:
        self._authorization = ("authorization", f"Bearer {token}")
        self._channels = [grpc.aio.insecure_channel(_target(e), options=_CHANNEL_OPTIONS) for e in endpoints]
        self._turn = itertools.count()

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer,
        response_deserializer: Deserializer,
        _registered_method: bool = False,
    ) -> Callable[..., "UnaryCall"]:
        """Called by generated stubs."""
        starters = [c.unary_unary(method, request_serializer, response_deserializer) for c in self._channels]

        def start(request: Any, *, timeout: float, metadata: Metadata = ()) -> UnaryCall:
            starter: Any = starters[self._pick()]
            return UnaryCall(starter(request, timeout=timeout, metadata=self._metadata(metadata)))

        return start

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer,
        response_deserializer: Deserializer,
        _registered_method: bool = False,
    ) -> Callable[..., "StreamCall"]:
        """Called by generated stubs."""
        starters = [c.unary_stream(method, request_serializer, response_deserializer) for c in self._channels]

        def start(request: Any, *, timeout: float, metadata: Metadata = ()) -> StreamCall:
            starter: Any = starters[self._pick()]
            return StreamCall(starter(request, timeout=timeout, metadata=self._metadata(metadata)))

        return start

    async def close(self, grace: float | None = None) -> None:
        """Ends the connections; running calls get `grace` seconds."""
        await asyncio.gather(*(channel.close(grace) for channel in self._channels))

    def _pick(self) -> int:
        """The next endpoint that is not known to be down; if all are, the next one."""
        first = next(self._turn)
        count = len(self._channels)
        for step in range(count):
            index = (first + step) % count
            if count == 1 or self._channels[index].get_state(try_to_connect=True) not in _DOWN:
                return index
        return first % count

    def _metadata(self, metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
        traceparent = current_traceparent()
        if traceparent is None:
            return (self._authorization, *metadata)
        return (self._authorization, (TRACEPARENT, traceparent), *metadata)


def _target(endpoint: str) -> str:
    host = endpoint.removeprefix("dns:")
    return f"dns:///{host}"


class _PlainCall:
    """A running call. `trailing_metadata` is there once it has ended."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._reason: CancelReason | None = None
        self.trailing_metadata: Metadata = ()

    def cancel(self, reason: CancelReason = CancelReason.CLIENT_GONE) -> bool:
        """Cancels the call: it fails with CallCancelledError here. The server does not learn why."""
        if self._call.done():
            return False
        self._reason = reason
        return bool(self._call.cancel())

    def _failure(self, error: grpc.aio.AioRpcError) -> GatewayError:
        self.trailing_metadata = _visible(error.trailing_metadata())
        return error_of(error)

    def _cancelled(self) -> CallCancelledError | None:
        """The failure when `cancel` caused the cancellation; None when the awaiting task itself was cancelled."""
        if self._reason is None:
            return None
        return CallCancelledError("the call was cancelled", metadata={"cancel_reason": str(self._reason)})

    async def _end(self) -> None:
        self.trailing_metadata = _visible(await self._call.trailing_metadata())


class UnaryCall(_PlainCall):
    """A call with one answer: await it."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        try:
            response = await self._call
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        except asyncio.CancelledError:
            if cancelled := self._cancelled():
                raise cancelled from None
            raise
        await self._end()
        return response


class StreamCall(_PlainCall):
    """A call with a stream of answers: iterate over it. Leaving it unfinished, by break or by losing it, cancels it."""

    def __init__(self, call: Any) -> None:
        super().__init__(call)
        self._responses = call.__aiter__()

    def __aiter__(self) -> "StreamCall":
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._responses.__anext__()
        except StopAsyncIteration:
            await self._end()
            raise
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        except asyncio.CancelledError:
            if cancelled := self._cancelled():
                raise cancelled from None
            raise

    async def aclose(self) -> None:
        """Ends the call if it still runs, so that `aclosing(call)` works."""
        self.cancel()

    def __del__(self) -> None:
        if not self._call.done():
            self._call.cancel()


def _visible(metadata: Any) -> Metadata:
    return tuple((key, value) for key, value in metadata or () if key != STATUS_DETAILS)


def error_of(error: grpc.aio.AioRpcError) -> GatewayError:
    """The GatewayError that a failed plain gRPC call stands for."""
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key == STATUS_DETAILS:
            try:
                return _as_seen_here(from_status(status_pb2.Status.FromString(value)))
            except DecodeError:
                break
    return _without_details(error)


def _as_seen_here(error: GatewayError) -> GatewayError:
    """A service that refuses our own token is down for us; passed on, it would tell a user that its key is bad."""
    if isinstance(error, InvalidCredentialError | MissingCredentialError) and error.metadata == OF_THE_CALLER:
        return ServiceUnavailableError("the service does not accept this caller", retry_in=timedelta(seconds=1))
    return error


def _without_details(error: grpc.aio.AioRpcError) -> GatewayError:
    """A status that the transport made. Its text names addresses, so it stays here."""
    code = error.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServiceUnavailableError("the service could not be reached", retry_in=timedelta(seconds=1))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError("the call's deadline passed")
    return from_status(status_pb2.Status(code=code.value[0], message=code.value[1]))
