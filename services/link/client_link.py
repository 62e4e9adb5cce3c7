"""One link as its client sees it: the calls on it, and what the frames that arrive do to them.

Owns the client's half of the protocol; refuses to move bytes: a connection, or the server in the same process, does.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from services.link import metadata as link_metadata
from services.link.client_calls import ClientCall, too_large
from services.link.deadlines import Deadlines
from services.link.frames import (
    CANCEL,
    GOAWAY,
    MESSAGE,
    MESSAGE_BYTES,
    PING,
    PONG,
    RESPONSE_WINDOW_BYTES,
    STATUS,
    WINDOW,
    Batch,
    Outbox,
)
from services.link.reassembly import Budget, Receiver
from services.runtime.calls import CancelReason
from services.runtime.errors import DeadlineExceededError, GatewayError, InvalidRequestError, from_status

_REASON_NUMBERS = {CancelReason.CLIENT_GONE: 1, CancelReason.DEADLINE: 2, CancelReason.SHUTDOWN: 3}
_METHOD_BYTES = 512
_TEXT_TAGS_BYTES = 16


class ClientLink:
    """Starts calls, and ends each exactly once: by its status, its deadline, its cancellation or the link's own end."""

    __slots__ = (
        "_budget",
        "_deadlines",
        "_ended_by",
        "_last_id",
        "_loop",
        "_outbox",
        "_request_window",
        "calls",
        "on_goaway",
        "on_idle",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox, request_window_bytes: int) -> None:
        self.calls: dict[int, ClientCall] = {}
        self.on_goaway: Callable[[int], None] | None = None
        self.on_idle: Callable[[], None] | None = None  # set once the link is to end after its last call
        self._loop = loop
        self._outbox = outbox
        self._request_window = request_window_bytes
        self._deadlines = Deadlines(loop)
        self._budget = Budget()
        self._last_id = 0
        self._ended_by: Callable[[], GatewayError] | None = None

    def start(self, call: ClientCall) -> None:
        """Sends a call. A failure that is known at once ends the call here."""
        if self._ended_by is not None:
            call.end(self._ended_by())
            return
        try:
            self._start(call)
        except GatewayError as error:
            call.end(error)

    def _start(self, call: ClientCall) -> None:
        request = call.request
        if len(request) > MESSAGE_BYTES:
            raise too_large()
        flat, text_bytes = link_metadata.encode(call.metadata) if call.metadata else (None, 0)
        if len(call.path) + len(call.traceparent) > _METHOD_BYTES:
            raise InvalidRequestError("the method's name is too long")
        timeout_us = 0
        if call.deadline is not None:
            timeout_us = int((call.deadline - self._loop.time()) * 1e6)
            if timeout_us <= 0:
                raise DeadlineExceededError("the deadline passed before the call began")
            call.deadline_slot = self._deadlines.add(call.deadline, call)
        self._last_id = call_id = self._last_id + 1
        call.call_id = call_id
        call.link = self
        self.calls[call_id] = call
        text_bytes += len(call.path) + len(call.traceparent) + _TEXT_TAGS_BYTES
        frame, call.sender = self._outbox.open_call(call_id, request, text_bytes, self._request_window)
        frame.method = call.path
        frame.timeout_us = timeout_us
        if flat:
            frame.metadata.extend(flat)
        if call.keeps_window:
            call.receiver = self._receiver_for(call)
        if call.traceparent:
            frame.traceparent = call.traceparent
        call.request = b""

    def on_batch(self, batch: Batch) -> None:
        """Handles a wire message."""
        calls = self.calls
        for frame in batch.frames:
            kind = frame.kind
            call = calls.get(frame.call)
            if call is None:
                if kind >= PING:
                    self._on_link_frame(kind, frame)
            elif kind == MESSAGE:
                self._on_message(call, frame)
            elif kind == STATUS:
                self._end(call, frame)
            elif kind == WINDOW and call.sender is not None:
                self._outbox.widen(call.sender, frame.window_bytes)

    def _on_message(self, call: ClientCall, frame: Any) -> None:
        receiver = call.receiver
        more = frame.more
        if receiver is None and more:
            receiver = call.receiver = self._receiver_for(call)
        if receiver is None:
            call.take(frame.payload)
        else:
            call.take_piece(receiver, frame.payload, more, frame.message_bytes)
        if frame.last:
            self._end(call, frame)

    def _receiver_for(self, call: ClientCall) -> Receiver:
        """The receiving end of a call's responses."""
        outbox, call_id = self._outbox, call.call_id

        def widen(window_bytes: int) -> None:
            frame = outbox.add_simple(call_id, WINDOW)
            frame.window_bytes = window_bytes

        return Receiver(RESPONSE_WINDOW_BYTES, self._budget, widen)

    def send_cancel(self, call: ClientCall, reason: CancelReason) -> None:
        """Tells the server that nobody waits for the call any more."""
        self._outbox.add_simple(call.call_id, CANCEL).cancel_reason = _REASON_NUMBERS[reason]

    def forget(self, call: ClientCall) -> None:
        """The call has ended."""
        if self.calls.pop(call.call_id, None) is None:
            return
        if call.deadline_slot:
            self._deadlines.discard(call.deadline_slot, call)
        if call.sender is not None:
            call.sender.drop()
        if call.receiver is not None:
            call.receiver.close()
            call.receiver = None
        if not self.calls and self.on_idle is not None:
            self.on_idle()

    def cancel_all(self, reason: CancelReason) -> None:
        """Cancels every call."""
        for call in list(self.calls.values()):
            call.cancel(reason)

    def fail(self, error: Callable[[], GatewayError]) -> None:
        """The link is no more: every call on it ends now, each with an error of its own."""
        self._ended_by = error
        for call in list(self.calls.values()):
            call.end(error())
        self._deadlines.close()

    def _end(self, call: ClientCall, frame: Any) -> None:
        if frame.metadata:
            call.trailing_metadata = link_metadata.decode(frame.metadata)
        call.end(_error_of(frame) if frame.status_code else None)

    def _on_link_frame(self, kind: int, frame: Any) -> None:
        if kind == PING:
            self._outbox.add_simple(0, PONG)
        elif kind == GOAWAY and self.on_goaway is not None:
            self.on_goaway(frame.goaway_reason)


def _error_of(frame: Any) -> GatewayError:
    status = status_pb2.Status(code=frame.status_code, message=frame.status_message)
    if frame.status_details:
        with contextlib.suppress(DecodeError):  # the code and the text still say what happened
            status = status_pb2.Status.FromString(frame.status_details)
    return from_status(status)
