"""The channel that generated stubs accept when their calls travel on links, or stay in the process.

Owns the shape of a call at the caller's side; refuses to choose links and to know how frames travel.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from services.link.client_calls import ClientCall, StreamCall, StreamState, UnaryCall
from services.runtime.calls import Deserializer, Metadata, Serializer

TraceContext = Callable[[], str | None]


def no_trace() -> None:
    """The `traceparent` of a caller that traces nothing."""


class CallChannel:
    """Makes calls and hands them to `start`, which may keep them until there is a link."""

    def __init__(self, start: Callable[[ClientCall], None], trace_context: TraceContext = no_trace) -> None:
        self.start_call = start
        self.trace_context = trace_context

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> "UnaryMethod":
        """Called by generated stubs."""
        return UnaryMethod(self, method, request_serializer or bytes, response_deserializer or bytes)

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> "StreamMethod":
        """Called by generated stubs."""
        return StreamMethod(self, method, request_serializer or bytes, response_deserializer or bytes)

    def stream_unary(self, method: str, *_: Any, **__: Any) -> Any:
        """Called by generated stubs, for methods that cannot be called here."""
        raise ValueError(f"{method}: client streaming is reserved for the link")

    stream_stream = stream_unary


class UnaryMethod:
    """`await stub.Method(request, timeout=…)`."""

    __slots__ = ("_channel", "_path", "_read", "_write")

    def __init__(self, channel: CallChannel, path: str, write: Serializer, read: Deserializer) -> None:
        self._channel = channel
        self._path = path
        self._write = write
        self._read = read

    def __call__(self, request: Any, *, timeout: float | None, metadata: Metadata | None = None) -> UnaryCall:
        """Starts the call. `timeout` in seconds; None leaves the deadline to the server's default."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        call = UnaryCall(loop, self._path, self._write(request), deadline, self._read)
        _send_off(self._channel, call, metadata)
        return call


class StreamMethod:
    """`async for response in stub.Method(request, timeout=…)`."""

    __slots__ = ("_channel", "_path", "_read", "_write")

    def __init__(self, channel: CallChannel, path: str, write: Serializer, read: Deserializer) -> None:
        self._channel = channel
        self._path = path
        self._write = write
        self._read = read

    def __call__(self, request: Any, *, timeout: float | None, metadata: Metadata | None = None) -> StreamCall:
        """Starts the call. `timeout` in seconds; None leaves the deadline to the server's default."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        state = StreamState(loop, self._path, self._write(request), deadline)
        _send_off(self._channel, state, metadata)
        return StreamCall(state, self._read)


def _send_off(channel: CallChannel, call: ClientCall, metadata: Metadata | None) -> None:
    if metadata:
        call.metadata = metadata
    call.traceparent = channel.trace_context() or ""
    channel.start_call(call)
