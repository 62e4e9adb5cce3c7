"""One link as its server sees it: the handlers that run for it, and what the frames that arrive do to them.

Owns the server's half of the protocol; refuses to move bytes: a gRPC stream, or the client in the same process, does.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from services.link import metadata as link_metadata
from services.link.client_calls import too_large, unreachable
from services.link.deadlines import Deadlines
from services.link.frames import (
    CALL,
    CANCEL,
    DETAILS_BYTES,
    FRAME_BYTES,
    GOAWAY,
    KIB,
    MESSAGE,
    MESSAGE_BYTES,
    PING,
    PONG,
    REQUEST_WINDOW_BYTES,
    STATUS,
    WINDOW,
    Batch,
    Outbox,
    Sender,
)
from services.link.reassembly import Budget, NoMemoryError, OversizedMessageError, ProtocolViolationError, Receiver
from services.runtime.calls import Call, Caller, CancelReason, Guard, Method, MethodTable
from services.runtime.errors import (
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    UnimplementedError,
    to_status,
)

_REASONS = {
    0: CancelReason.CLIENT_GONE,
    1: CancelReason.CLIENT_GONE,
    2: CancelReason.DEADLINE,
    3: CancelReason.SHUTDOWN,
}
_TEXT_BYTES = 2 * KIB
_TEXT_CHARACTERS = _TEXT_BYTES // 4
# This is the boundary: whatever ends a handler, the guard turns it into a status.
_FAILURES = (Exception, asyncio.CancelledError)


class ServedCall:
    """A call that is being served: its request on the way in, then its handler, then its responses on the way out."""

    __slots__ = ("begun", "call", "deadline_slot", "link", "method", "receiver", "room", "sender", "task")

    def __init__(self, link: "ServerLink", method: Method, call: Call, sender: Sender) -> None:
        self.link = link
        self.method = method
        self.call = call
        self.sender = sender
        self.receiver: Receiver | None = None  # while pieces of the request arrive
        self.task: asyncio.Task[None] | None = None
        self.begun = False  # the handler's task has run at least once
        self.room: asyncio.Future[None] | None = None
        self.deadline_slot = 0

    def expire(self) -> None:
        """The deadline passed."""
        self.link.abandon(self, CancelReason.DEADLINE, DeadlineExceededError("the deadline passed"))

    async def drained(self) -> None:
        """Returns when all that was sent so far has left: the reader has made room."""
        if self.sender.backlog:
            self.room = asyncio.get_running_loop().create_future()
            self.sender.on_drained = self._make_room
            await self.room

    def _make_room(self) -> None:
        if self.room is not None and not self.room.done():
            self.room.set_result(None)


class ServerLink:
    """Runs one task for each call. A call ends once, and its guard hears of that once."""

    def __init__(
        self,
        outbox: Outbox,
        table: MethodTable,
        guard: Guard,
        caller: Caller,
        response_window_bytes: int,
    ) -> None:
        self.calls: dict[int, ServedCall] = {}
        self._loop = loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._methods = table.methods
        self._guard = guard
        self._caller = caller
        self._response_window = response_window_bytes
        self._budget = Budget()
        self._deadlines = Deadlines(loop)
        self._last_id = 0
        self._ending: set[asyncio.Task[None]] = set()  # cancelled, still cleaning up

    def on_batch(self, batch: Batch) -> None:
        """Handles a wire message. Raises ProtocolViolationError: the link must end."""
        for frame in batch.frames:
            kind = frame.kind
            if kind == CALL:
                self._on_call(frame)
            elif kind == PING:
                self._outbox.add_simple(0, PONG)
            elif (served := self.calls.get(frame.call)) is None:
                continue  # ended meanwhile, or nothing that concerns us
            elif kind == MESSAGE:
                self._on_piece(served, frame)
            elif kind == WINDOW:
                self._outbox.widen(served.sender, frame.window_bytes)
            elif kind == CANCEL:
                self.abandon(served, _REASONS.get(frame.cancel_reason, CancelReason.CLIENT_GONE), None)

    def abandon(self, served: ServedCall, reason: CancelReason | None, error: GatewayError | None) -> None:
        """Ends a call before its handler has: cancels the handler and, if there is an error, says so to the client."""
        call_id = served.sender.call_id
        if self.calls.get(call_id) is not served:
            return
        self._forget(served)
        served.call.cancel_reason = reason
        task = served.task
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(lambda ended: self._on_ended(ended, served))
            task.cancel()
        if error is not None:
            self._send_status(served, error)

    def goaway(self, reason: int) -> None:
        """Asks the client to open no further calls."""
        self._outbox.add_simple(0, GOAWAY).goaway_reason = reason

    def close(self, reason: CancelReason | None = None, error: Callable[[], GatewayError] | None = None) -> None:
        """Cancels all handlers. Without a reason the link was lost, and nobody said that the calls are not wanted."""
        for served in list(self.calls.values()):
            self.abandon(served, reason, None if error is None else error())
        if error is None:
            self._deadlines.close()

    async def ended(self) -> None:
        """Returns once the handlers that were cancelled have ended too."""
        if self._ending:
            await asyncio.wait(set(self._ending))

    # Requests.

    def _on_call(self, frame: Any) -> None:
        call_id = frame.call
        if call_id <= self._last_id:
            raise ProtocolViolationError("call ids must ascend")
        self._last_id = call_id
        now = self._loop.time()
        timeout_us = frame.timeout_us
        metadata: list[tuple[str, str | bytes]] = []
        if frame.metadata:
            metadata.extend(link_metadata.decode(frame.metadata))
        if frame.traceparent:
            metadata.append(("traceparent", frame.traceparent))
        path = frame.method
        call = Call(path, self._caller, metadata, now, now + timeout_us / 1e6 if timeout_us else None)
        sender = Sender(call_id, self._response_window)
        method = self._methods.get(path)
        if method is None:
            self._write_status(sender, call, UnimplementedError(f"no method {path[:_TEXT_CHARACTERS]}"))
            return
        served = ServedCall(self, method, call, sender)
        self.calls[call_id] = served
        if call.deadline is not None:
            served.deadline_slot = self._deadlines.add(call.deadline, served)
        if frame.more:
            served.receiver = Receiver(REQUEST_WINDOW_BYTES, self._budget, lambda size: self._widen(call_id, size))
            self._on_piece(served, frame)
        else:
            self._run(served, frame.payload)

    def _widen(self, call_id: int, window_bytes: int) -> None:
        self._outbox.add_simple(call_id, WINDOW).window_bytes = window_bytes

    def _on_piece(self, served: ServedCall, frame: Any) -> None:
        receiver = served.receiver
        if receiver is None:
            raise ProtocolViolationError("a call has one request")
        try:
            message = receiver.take(frame.payload, frame.more, frame.message_bytes)
        except OversizedMessageError:
            self._refuse(served, too_large())
            return
        except NoMemoryError:
            self._refuse(served, unreachable("too many large messages at once"))
            return
        if message is not None:
            receiver.close()
            served.receiver = None
            self._run(served, message)

    def _refuse(self, served: ServedCall, error: GatewayError) -> None:
        self._forget(served)
        failure = self._guard.finish(served.method, served.call, error)
        self._send_status(served, failure or error)

    def _run(self, served: ServedCall, request: bytes) -> None:
        run = self._serve_stream if served.method.is_streaming else self._serve_unary
        served.task = self._loop.create_task(run(served, request))

    # Handlers.

    async def _serve_unary(self, served: ServedCall, payload: bytes) -> None:
        served.begun = True
        method, call = served.method, served.call
        response = b""
        error: BaseException | None = None
        try:
            self._admit(served)
            response = method.write_response(await method.behavior(_read(method, payload), call))
            if len(response) > MESSAGE_BYTES:
                error = too_large()
        except _FAILURES as raised:
            error = raised
        failure = self._guard.finish(method, call, error)
        if self.calls.get(served.sender.call_id) is not served:
            return
        if failure is not None or call.trailing_metadata:
            if failure is None and not self._outbox.send(served.sender, response):
                await served.drained()
            self._end(served, failure)
        else:
            if not self._outbox.send(served.sender, response, last=True):
                await served.drained()
            self._forget(served)

    async def _serve_stream(self, served: ServedCall, payload: bytes) -> None:
        served.begun = True
        method, call = served.method, served.call
        error: BaseException | None = None
        responses = None
        try:
            self._admit(served)
            responses = method.behavior(_read(method, payload), call)
            await self._relay(served, responses)
        except _FAILURES as raised:
            error = raised
        if error is not None and responses is not None:
            error = await _close(responses, error)
        failure = self._guard.finish(method, call, error)
        self._end(served, failure)

    async def _relay(self, served: ServedCall, responses: Any) -> None:
        """Sends what a handler yields, and lets it run no further than its reader's window."""
        write, send, sender = served.method.write_response, self._outbox.send, served.sender
        async for response in responses:
            message = write(response)
            if len(message) > MESSAGE_BYTES:
                raise too_large()
            if not send(sender, message):
                await served.drained()

    def _admit(self, served: ServedCall) -> None:
        call = served.call
        self._guard.admit(served.method, call)
        if not served.deadline_slot and call.deadline is not None:
            served.deadline_slot = self._deadlines.add(call.deadline, served)

    def _on_ended(self, task: asyncio.Task[None], served: ServedCall) -> None:
        self._ending.discard(task)
        if not served.begun:  # cancelled before its first step
            self._guard.finish(served.method, served.call, asyncio.CancelledError())

    # The end of a call.

    def _end(self, served: ServedCall, failure: GatewayError | None) -> None:
        if self.calls.get(served.sender.call_id) is served:
            self._forget(served)
            self._send_status(served, failure)

    def _forget(self, served: ServedCall) -> None:
        del self.calls[served.sender.call_id]
        if served.deadline_slot:
            self._deadlines.discard(served.deadline_slot, served)
        if served.sender.backlog:
            served.sender.drop()
        if served.receiver is not None:
            served.receiver.close()

    def _send_status(self, served: ServedCall, failure: GatewayError | None) -> None:
        self._write_status(served.sender, served.call, failure)

    def _write_status(self, sender: Sender, call: Call, failure: GatewayError | None) -> None:
        flat: list[bytes] = []
        size_bytes = FRAME_BYTES
        if call.trailing_metadata:
            try:
                flat, text_bytes = link_metadata.encode(call.trailing_metadata)
                size_bytes += text_bytes
            except InvalidRequestError:
                failure = failure or GatewayError("the call's trailing metadata is too large")
        details = b"" if failure is None else _details(failure)
        frame = self._outbox.add(size_bytes + len(details) + _TEXT_BYTES)
        frame.call = sender.call_id
        frame.kind = STATUS
        if flat:
            frame.metadata.extend(flat)
        if failure is not None:
            frame.status_code = failure.code.value[0]
            frame.status_message = failure.message[:_TEXT_CHARACTERS]
            frame.status_details = details


def _read(method: Method, payload: bytes) -> Any:
    try:
        return method.read_request(payload)
    except DecodeError as error:
        raise InvalidRequestError("the request is not a message of its type") from error


async def _close(responses: Any, error: BaseException) -> BaseException:
    """Ends a handler that is suspended at a yield, by the cancellation that it did not see. Returns how it ended."""
    try:
        if responses.ag_frame is not None and isinstance(error, asyncio.CancelledError):
            await responses.athrow(error)
        await responses.aclose()
    except StopAsyncIteration:
        pass
    except _FAILURES as raised:
        return raised
    return error


def _details(failure: GatewayError) -> bytes:
    """The status, without the details that would not fit; its reason comes first and stays longest."""
    status = to_status(failure)
    status.message = status.message[:_TEXT_CHARACTERS]
    while status.ByteSize() > DETAILS_BYTES:
        del status.details[-1]
    details: bytes = status.SerializeToString()
    return details
