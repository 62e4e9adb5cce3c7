"""The plain gRPC listener: registered servicers, health and reflection on one port.

Owns the way of a call between grpc.aio and the guard; refuses to authorise, to log and to know any service.
"""

import asyncio
import contextlib
import functools
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from services.runtime.callers import BearerCallers
from services.runtime.calls import Call, Caller, CallerClass, CancelReason, Guard, Method, MethodTable
from services.runtime.errors import GatewayError, InvalidRequestError, UnimplementedError, to_status

MAX_MESSAGE_BYTES = 48 * 1024 * 1024
MAX_METADATA_BYTES = 64 * 1024
STATUS_DETAILS = "grpc-status-details-bin"

LISTENER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # two processes on one port must fail, not share
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
# Old connections end so that clients find new replicas; the longest call may still finish on them.
_AGE_OPTIONS = (("grpc.max_connection_age_ms", 600_000), ("grpc.max_connection_age_grace_ms", 900_000))

_REFLECTION = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
_UNKNOWN_CALLER = Caller(CallerClass.TEAM, "unknown")
_HIDDEN_METADATA = frozenset({"authorization"})
_LAST_WORDS_S = 0.3
_DEADLINE_SLACK_S = 0.02  # the client's clock ends a call a little before ours would


class Health:
    """`grpc.health.v1`: `startup`, `liveness`, `readiness` and "" (the same as readiness)."""

    def __init__(self) -> None:
        self.servicer = HealthServicer()

    async def set(self, *services: str, is_serving: bool) -> None:
        """Sets what probes of these names are told."""
        status = health_pb2.HealthCheckResponse
        for service in services:
            await self.servicer.set(service, status.SERVING if is_serving else status.NOT_SERVING)


class GrpcListener:
    """A `grpc.aio` server over a MethodTable."""

    def __init__(self, table: MethodTable, guard: Guard, callers: BearerCallers, health: Health) -> None:
        self._guard, self._callers = guard, callers
        self._running: dict[asyncio.Task[bytes], Call] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._server = grpc.aio.server(options=(*LISTENER_OPTIONS, *_AGE_OPTIONS))
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, self._server)
        services = {path.split("/")[1] for path in table.methods}
        _add_reflection(self._server, services)
        handlers = {path: self._handler_of(method) for path, method in table.methods.items()}
        self._server.add_generic_rpc_handlers((_Handlers(handlers),))

    async def start(self, address: str) -> int:
        """Listens; returns the port. Raises RuntimeError when the address is taken."""
        port = self._server.add_insecure_port(address)
        await self._server.start()
        return port

    async def drain(self, grace_s: float) -> None:
        """Takes no more calls, lets the running ones end for `grace_s`, then cancels them with reason SHUTDOWN."""
        stopping = asyncio.ensure_future(self._server.stop(grace_s + 1.0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._until_answered(stopping)
        for task, call in list(self._running.items()):
            call.cancel_reason = call.cancel_reason or CancelReason.SHUTDOWN
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._until_answered(stopping)
        await self._server.stop(None)  # health watches and reflection streams would never end by themselves
        await stopping

    async def _until_answered(self, stopping: asyncio.Future[None]) -> None:
        """Returns once no call of ours runs and the last statuses have left. (gRPC itself would wait for watches.)"""
        while not stopping.done():
            await self._idle.wait()
            await asyncio.wait((stopping,), timeout=_LAST_WORDS_S)
            if self._idle.is_set():
                return

    def _handler_of(self, method: Method) -> Any:
        serve = functools.partial(self._serve, method)
        if method.is_streaming:
            return grpc.unary_stream_rpc_method_handler(serve)
        return grpc.unary_unary_rpc_method_handler(serve)

    async def _serve(self, method: Method, body: bytes, context: Any) -> bytes:
        """Runs a call in a task of its own, so that a cancellation's reason is known before the handler sees it."""
        call = _call_of(method, context)
        task = asyncio.get_running_loop().create_task(self._run(method, call, body, context))
        self._running[task] = call
        self._idle.clear()
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:  # nobody reads the answer; the handler cleans up in its own time
            call.cancel_reason = call.cancel_reason or _why_cancelled(call)
            task.add_done_callback(lambda ended: self._guard.finish(method, call, _error_of(ended)))
            task.cancel()
            raise
        failure = self._guard.finish(method, call, _error_of(task))
        return await self._send(call, failure, task, context)

    def _forget(self, task: asyncio.Task[bytes]) -> None:
        del self._running[task]
        if not self._running:
            self._idle.set()

    async def _send(self, call: Call, failure: GatewayError | None, task: asyncio.Task[bytes], context: Any) -> bytes:
        if failure is None:
            if call.trailing_metadata:
                context.set_trailing_metadata(tuple(call.trailing_metadata))
            return task.result()
        details = (STATUS_DETAILS, to_status(failure).SerializeToString())
        await context.abort(failure.code, failure.message, (details, *call.trailing_metadata))
        raise AssertionError("abort always raises")

    async def _run(self, method: Method, call: Call, body: bytes, context: Any) -> bytes:
        call.caller = await self._callers.identify(_authorization_of(context))
        self._guard.admit(method, call)
        assert call.deadline is not None
        timer = asyncio.get_running_loop().call_at(call.deadline, _expire, call, asyncio.current_task())
        try:
            request = _read(method, body)
            if not method.is_streaming:
                return method.write_response(await method.behavior(request, call))
            await _relay(method.behavior(request, call), method, call, context)
            return b""
        finally:
            timer.cancel()


async def _relay(responses: Any, method: Method, call: Call, context: Any) -> None:
    """Sends what a handler yields. One that waits at a `yield` learns of a cancellation as one that awaits does."""
    try:
        async for response in responses:
            await _write(call, context, method.write_response(response))
    except asyncio.CancelledError as error:
        if responses.ag_frame is not None:
            with contextlib.suppress(StopAsyncIteration):
                await responses.athrow(error)
        raise
    finally:
        await responses.aclose()


def _error_of(task: asyncio.Task[bytes]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def _write(call: Call, context: Any, message: bytes) -> None:
    try:
        await context.write(message)
    except grpc.aio.BaseError:  # the caller left, and grpc says so here before it cancels us
        call.cancel_reason = call.cancel_reason or _why_cancelled(call)
        raise asyncio.CancelledError from None


def _call_of(method: Method, context: Any) -> Call:
    now = asyncio.get_running_loop().time()
    remaining = context.time_remaining()
    metadata = [(key, value) for key, value in context.invocation_metadata() or () if key not in _HIDDEN_METADATA]
    return Call(method.path, _UNKNOWN_CALLER, metadata, now, None if remaining is None else now + remaining)


def _authorization_of(context: Any) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return str(value)
    return None


def _read(method: Method, body: bytes) -> Any:
    try:
        return method.read_request(body)
    except DecodeError:
        raise InvalidRequestError("the request is not a message of this method") from None


def _expire(call: Call, task: asyncio.Task[Any] | None) -> None:
    assert task is not None
    call.cancel_reason = call.cancel_reason or CancelReason.DEADLINE
    task.cancel()


def _why_cancelled(call: Call) -> CancelReason:
    """Plain gRPC does not carry a caller's reason. It is inferred: the deadline has passed, else the client is gone."""
    now = asyncio.get_running_loop().time()
    has_expired = call.deadline is not None and now >= call.deadline - _DEADLINE_SLACK_S
    return CancelReason.DEADLINE if has_expired else CancelReason.CLIENT_GONE


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg,unused-ignore]
    """Finds the handler of a path. An unknown one fails like every other failure: with an ErrorInfo."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._handlers = handlers
        self._unknown = grpc.unary_unary_rpc_method_handler(_refuse_unknown)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        if path.startswith("/grpc."):
            return None
        return self._handlers.get(path, self._unknown)


async def _refuse_unknown(_body: bytes, context: Any) -> bytes:
    failure: GatewayError = UnimplementedError("there is no such method here")
    await context.abort(failure.code, failure.message, ((STATUS_DETAILS, to_status(failure).SerializeToString()),))
    raise AssertionError("abort always raises")


def _add_reflection(server: grpc.aio.Server, services: set[str]) -> None:
    """Serves v1alpha and v1, which are the same messages under two names."""
    names = (*services, "grpc.health.v1.Health", *_REFLECTION)
    servicer = ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in _REFLECTION)
    )
